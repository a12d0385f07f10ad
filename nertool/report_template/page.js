"use strict";
// Sorts the tables, and shows the errors. All text goes in as text, never as markup.

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return cell.textContent;
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    // Names begin with the first, numbers with the largest.
    const order = before === "none" ? (column === 0 ? "ascending" : "descending")
      : before === "ascending" ? "descending" : "ascending";
    for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null); // what has no number is always last
      return sign * (typeof a === "string" ? a.localeCompare(b, "en") : a - b);
    };
    body.append(...[...body.rows].sort((a, b) => compare(value(a, column), value(b, column))));
  }));
}

if (document.getElementById("data")) (() => {
  const { kinds, labels, sections, errors } = JSON.parse(document.getElementById("data").textContent);
  const ON_A_PAGE = 25;
  const COLOURS = 10;
  const LONGEST_LABEL = 16;
  const LONGEST_WORD = 24; // longer ones, such as sequences, break over lines
  const LABEL_WIDTH = 0.78; // of a label's character, in characters of the text
  const NONE = "(none)";
  const byId = (id) => document.getElementById(id);
  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // The most frequent classes get the colours first, so that those are different.
  const counts = new Map(labels.map((_, label) => [label, 0]));
  for (const section of sections) for (const entity of section.entities) counts.set(entity[1], counts.get(entity[1]) + 1);
  const colours = new Map([...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a - b)
    .map((label, place) => [label, `k${place % COLOURS}`]));

  const spansOf = (entity) => {
    const spans = [];
    for (let i = 4; i < entity.length; i += 2) spans.push([entity[i], entity[i + 1]]);
    return spans;
  };
  const side = (error, predicted) => error[2].map((number) => sections[error[0]].entities[number])
    .filter((entity) => entity[0] === predicted);

  // Offsets count code points, as a string's own don't.
  const points = new WeakMap();
  const textsOf = (section) => {
    if (!points.has(section)) points.set(section, section.texts.map(([offset, text]) => [offset, Array.from(text)]));
    return points.get(section);
  };
  const characters = (section, from, to) => {
    for (const [offset, text] of textsOf(section))
      if (from >= offset && to <= offset + text.length) return text.slice(from - offset, to - offset);
    return null;
  };
  const mention = (section, entity) => spansOf(entity).map(([from, to]) => {
    if (to - from <= 100) { const found = characters(section, from, to); if (found) return found.join(""); }
    const first = characters(section, from, Math.min(to, from + 60));
    return `${first ? first.join("") : ""}…`;
  }).join(" … ");

  // Places bars above or below each other: the shorter ones next to the text, none on another one or on its label.
  const LANE = 1.06; // rem, with a label
  const LINE = 0.28; // rem, without
  const place = (bars) => {
    const [lines, labelled] = [bars.filter((bar) => !bar.label), bars.filter((bar) => bar.label)];
    const base = LINE * lanes(lines);
    lanes(labelled);
    for (const bar of lines) [bar.near, bar.far] = [bar.lane * LINE, (bar.lane + 1) * LINE];
    for (const bar of labelled) [bar.near, bar.far] = [base + bar.lane * LANE, base + (bar.lane + 1) * LANE];
  };
  const lanes = (bars) => {
    const taken = [];
    for (const bar of [...bars].sort((a, b) => a.to - a.from - (b.to - b.from) || a.from - b.from)) {
      let lane = taken.findIndex((others) => others.every((other) => bar.wide <= other.from || bar.from >= other.wide));
      if (lane < 0) lane = taken.push([]) - 1;
      taken[lane].push(bar);
      bar.lane = lane;
    }
    return taken.length;
  };

  const excerpt = (error) => {
    const section = sections[error[0]];
    const own = new Set(error[2]);
    const text = element("div", "text");
    const windows = [];
    for (let i = 0; i < error[3].length; i += 2) windows.push([error[3][i], error[3][i + 1]]);
    windows.forEach(([from, to], number) => {
      if (number > 0 || from > 0) text.append(element("span", "cut", number > 0 ? " … " : "… "));
      const bars = section.entities.map((entity, number) => {
        const spans = spansOf(entity);
        const first = spans[0][0];
        const last = Math.max(...spans.map(([, end]) => end));
        const label = labels[entity[1]];
        const shown = label.length > LONGEST_LABEL ? `${label.slice(0, LONGEST_LABEL - 1)}…` : label;
        const bar = { entity, spans, own: own.has(number), first, last, from: Math.max(first, from), to: Math.min(last, to) };
        // A right entity is there twice, above and below the text; its label once.
        bar.label = entity[0] && entity[2] ? "" : shown;
        bar.wide = Math.max(bar.to, bar.from + Math.ceil(bar.label.length * LABEL_WIDTH) + 1);
        return bar;
      }).filter((bar) => bar.from < bar.to);
      for (const predicted of [0, 1]) place(bars.filter((bar) => bar.entity[0] === predicted));
      text.append(...atoms(section, from, to, bars));
      if (number === windows.length - 1 && to < section.length) text.append(element("span", "cut", " …"));
    });
    return text;
  };

  const atoms = (section, from, to, bars) => {
    const chars = characters(section, from, to) ?? [];
    const blank = (offset) => /\s/.test(chars[offset - from]);
    const cuts = new Set([from, to]);
    for (const bar of bars) for (const span of [...bar.spans, [bar.first, bar.last]]) for (const cut of span)
      if (cut > from && cut < to) cuts.add(cut);
    for (let offset = from + 1, begin = from; offset < to; offset++)
      if (blank(offset) || blank(offset - 1) || offset - begin === LONGEST_WORD) cuts.add(begin = offset);
    const places = [...cuts].sort((a, b) => a - b);
    const parts = [];
    let word = null;
    let plain = null; // text without bars, as one piece
    for (let i = 0; i + 1 < places.length; i++) {
      const [start, end] = [places[i], places[i + 1]];
      const shown = chars.slice(start - from, end - from).join("").replace(/\r\n|[\r\n\u2028\u2029]/g, "↵");
      const over = bars.filter((bar) => bar.from < end && bar.to > start);
      const isBlank = blank(start);
      if (isBlank && !over.length) {
        word = null;
        if (plain) plain.data += shown; else parts.push(plain = document.createTextNode(shown));
        continue;
      }
      if (!over.length && !word && (end === to || blank(end) || plain)) {
        if (plain) plain.data += shown; else parts.push(plain = document.createTextNode(shown));
        continue;
      }
      plain = null;
      const atom = element("span", "atom", shown);
      for (const predicted of [0, 1]) {
        const mine = over.filter((bar) => bar.entity[0] === predicted);
        const room = Math.max(0, ...mine.map((bar) => bar.far));
        if (room) atom.style.setProperty(predicted ? "margin-bottom" : "margin-top", `${room}rem`);
        for (const bar of mine) atom.append(mark(bar, start, end));
      }
      if (isBlank) { word = null; parts.push(atom); continue; }
      if (!word || word.textContent.length >= LONGEST_WORD) parts.push(word = element("span", "word"));
      word.append(atom);
    }
    return parts;
  };

  const mark = (bar, start, end) => {
    const [predicted, label, right, score] = bar.entity;
    const inside = bar.spans.some(([from, to]) => from <= start && to >= end);
    const made = element("span", `mark ${predicted ? "predicted" : "gold"} ${right ? "right" : "wrong"} ${colours.get(label)}`);
    if (bar.own) made.classList.add("own");
    if (!inside) made.classList.add("gap");
    if (inside && bar.spans.some(([from]) => from === start)) made.classList.add("first");
    if (inside && bar.spans.some(([, to]) => to === end)) made.classList.add("last");
    made.style.setProperty(predicted ? "top" : "bottom", `calc(100% + ${bar.near - 0.2}rem)`);
    if (start === bar.from && bar.label) made.dataset.label = bar.label;
    made.title = `${predicted ? "predicted" : "gold"} ${labels[label]}${score === null ? "" : ` ${score.toFixed(2)}`}, ${right ? "right" : predicted ? "wrong" : "missed"}`;
    return made;
  };

  const words = (section, entities, name) => {
    const part = element("span");
    part.append(element("span", "side", `${name} `));
    entities.forEach((entity, place) => {
      if (place) part.append(", ");
      part.append(element("span", `label ${colours.get(entity[1])}`, labels[entity[1]]), " ", element("q", "", mention(section, entity)));
      if (entity[3] !== null) part.append(element("span", "side n", ` ${entity[3].toFixed(2)}`));
    });
    return part;
  };

  const shown = (error) => {
    const section = sections[error[0]];
    const article = element("article");
    const what = element("p", "what");
    what.append(element("b", "", kinds[error[1]]));
    for (const [predicted, name] of [[0, "gold"], [1, "predicted"]]) {
      const entities = side(error, predicted);
      if (entities.length) what.append(" · ", words(section, entities, name));
    }
    article.append(what, excerpt(error), element("p", "where", `${section.id} · ${section.name} · from character ${firstOffset(error).toLocaleString("en")}`));
    return article;
  };
  const firstOffset = (error) => Math.min(...error[2].map((number) => sections[error[0]].entities[number][4]));

  // What is searched in: made once, when the first search needs it.
  let haystack = null;
  const searched = () => haystack ??= errors.map((error) => {
    const section = sections[error[0]];
    const of = error[2].map((number) => section.entities[number]);
    const context = [];
    for (let i = 0; i < error[3].length; i += 2) context.push(...characters(section, error[3][i], error[3][i + 1]) ?? [], "\n");
    return [section.id, section.name, ...of.map((entity) => `${labels[entity[1]]} ${mention(section, entity)}`), context.join("")]
      .join("\n").toLowerCase();
  });

  const classesOf = errors.map((error) => [0, 1].map((predicted) => {
    const of = side(error, predicted).map((entity) => labels[entity[1]]);
    return of.length ? of : [NONE];
  }));
  const fill = (select, names) => {
    select.append(new Option("any", ""));
    for (const [name, count] of names) select.append(new Option(`${name} (${count.toLocaleString("en")})`, name));
  };
  const tally = (lists) => {
    const found = new Map();
    for (const list of lists) for (const name of new Set(list)) found.set(name, (found.get(name) ?? 0) + 1);
    return found;
  };
  const ofKinds = tally(errors.map((error) => [kinds[error[1]]]));
  fill(byId("kind"), kinds.filter((kind) => ofKinds.has(kind)).map((kind) => [kind, ofKinds.get(kind)]));
  ["gold", "predicted"].forEach((id, place) => {
    const found = [...tally(classesOf.map((both) => both[place]))];
    fill(byId(id), found.sort(([a], [b]) => (a === NONE) - (b === NONE) || a.localeCompare(b, "en")));
  });

  let found = [];
  let page = 0;
  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / ON_A_PAGE));
    byId("list").replaceChildren(...found.slice(page * ON_A_PAGE, (page + 1) * ON_A_PAGE).map((number) => shown(errors[number])));
    byId("page").textContent = `page ${(page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
    byId("before").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("pages").hidden = pages === 1;
  };
  const filter = () => {
    const [kind, gold, predicted] = ["kind", "gold", "predicted"].map((id) => byId(id).value);
    const query = byId("query").value.trim().toLowerCase();
    found = [];
    errors.forEach((error, number) => {
      if (kind && kinds[error[1]] !== kind) return;
      if (gold && !classesOf[number][0].includes(gold)) return;
      if (predicted && !classesOf[number][1].includes(predicted)) return;
      if (query && !searched()[number].includes(query)) return;
      found.push(number);
    });
    page = 0;
    byId("count").textContent = found.length === errors.length ? "" :
      `${found.length.toLocaleString("en")} of ${errors.length.toLocaleString("en")} errors`;
    draw();
  };

  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(filter));
  for (const id of ["kind", "gold", "predicted"]) byId(id).addEventListener("change", filter);
  let waiting;
  byId("query").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 150); });
  const turn = (by) => { page += by; draw(); byId("browser").scrollIntoView(); };
  byId("before").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  for (const button of document.querySelectorAll("button.look")) button.addEventListener("click", () => {
    for (const id of ["kind", "gold", "predicted"]) byId(id).value = button.dataset[id] ?? "";
    byId("query").value = "";
    filter();
    byId("browser").scrollIntoView();
  });
  filter();
})();
