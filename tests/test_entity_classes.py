"""What an LLM may call a class, and what a file of classes may look like."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.entity_classes import DEFAULT_CLASSES, ClassList, load_classes
from nertool.errors import NertoolError

CLASSES = load_classes(None)
GENE, DISEASE, TISSUE = "gene or gene product", "disease, disorder, phenotype or trait", "anatomical part or tissue"
NO_REGULAR_PLURAL = ("s", "bacterium", "taxon", "software", "equipment")
WORDINGS = [(wording, one.name) for one in CLASSES.classes for wording in (one.name, *one.aliases)]
REGULAR = [(wording, name) for wording, name in WORDINGS if not wording.endswith(NO_REGULAR_PLURAL)]


def make(*classes: str | tuple[str, ...]) -> ClassList:
    """Returns classes of names, or of tuples of a name and its aliases."""
    rows = [(one,) if isinstance(one, str) else one for one in classes]
    return ClassList.model_validate({"class": [{"name": name, "aliases": aliases} for name, *aliases in rows]})


# The default classes


def test_the_default_classes_are_kazus_eighteen():
    assert len(CLASSES.names) == len(set(CLASSES.names)) == 18
    assert CLASSES.names == load_classes(DEFAULT_CLASSES).names
    assert all(one.description and one.examples for one in CLASSES.classes)


@pytest.mark.parametrize(("wording", "name"), WORDINGS, ids=[wording for wording, _ in WORDINGS])
def test_every_wording_of_the_default_file_means_its_class(wording, name):
    for form in (wording, wording.upper(), wording.title(), wording.replace(" ", "_"), wording.replace(" ", "-")):
        assert CLASSES.resolve(form) == name
        assert CLASSES.is_wording(form)
    for around in ("{}.", "'{}'", "**{}**", " {}\n", "<{}>", "[{}]", "“{}”", "#{}"):
        assert CLASSES.resolve(around.format(wording)) == name


@pytest.mark.parametrize(("wording", "name"), REGULAR, ids=[wording for wording, _ in REGULAR])
def test_every_wording_has_a_plural(wording, name):
    plural = f"{wording[:-1]}ies" if wording.endswith("y") and wording[-2] not in "aeiou" else f"{wording}s"
    assert CLASSES.resolve(plural) == name


@given(st.sampled_from(WORDINGS), st.data())
@settings(max_examples=200)
def test_case_and_punctuation_do_not_matter(pair, data):
    wording, name = pair
    letters = [
        letter.upper() if data.draw(st.booleans()) else letter
        for letter in wording.replace(
            " ", data.draw(st.sampled_from([" ", "_", "-", "  ", "\n", "\u00a0", "–", " / "]))
        )
    ]
    around = data.draw(st.text(st.sampled_from("_*\"'.,:()[]<> #"), max_size=3))
    assert CLASSES.resolve(around + "".join(letters) + around) == name


@given(st.text())
@settings(max_examples=200)
def test_any_string_can_be_asked_for(wording):
    meant = CLASSES.resolve(wording)
    assert meant is None or meant in CLASSES.names
    assert CLASSES.is_wording(wording) == (meant is not None)


@pytest.mark.parametrize(
    ("wording", "name"),
    [
        ("gene", GENE),
        ("Genes", GENE),
        ("gene product", GENE),
        ("GENE_PRODUCTS", GENE),
        ("proteins", GENE),
        ("Gene/Protein", GENE),
        ("disease", DISEASE),
        ("diseases", DISEASE),
        ("disorder", DISEASE),
        ("Phenotypes", DISEASE),
        ("trait", DISEASE),
        ("syndromes", DISEASE),
        ("tissue", TISSUE),
        ("tissues", TISSUE),
        ("anatomical part", TISSUE),
        ("Anatomical_Parts", TISSUE),
        ("protein domain", "protein domain or region"),
        ("cell types", "cell type"),
        ("Cell Type", "cell type"),
        ("cell-line", "cell type"),
        ("species", "species"),
        ("viruses", "species"),
        ("therapies", "treatment"),
        ("cities", "place"),
        ("countries", "place"),
        ("biological processes", "biological process"),
        ("assays", "method"),
        ("organisations", "organization"),
        ("SNPs", "mutation"),
        ("ｄｒｕｇ", "drug"),
        ("drug\u00a0", "drug"),
    ],
)
def test_wordings(wording, name):
    assert CLASSES.resolve(wording) == name


@pytest.mark.parametrize(
    "wording",
    [
        "", " ", "?", "_", "s", "es", "ies", "class", "entity", "entity_match", "other", "none", "misc", "O", "day",
        "or", "part", "product", "type", "dru", "drugg", "drug name", "gene drug", "drug, chemical", "药", "\0",
        "aspirin", "disorder of the", "\u0301",
    ],
)  # fmt: skip
def test_unknown_wordings(wording):
    assert CLASSES.resolve(wording) is None
    assert not CLASSES.is_wording(wording)


@pytest.mark.parametrize("wording", ["bacteria", "taxa"])
def test_latin_plurals(wording):
    assert CLASSES.resolve(wording) == "species"


# Classes of one's own


def test_names_come_in_the_order_of_the_file():
    assert make("b", "a", "c").names == ["b", "a", "c"]


def test_a_name_is_preferred_to_an_alias_of_another():
    assert make(("a", "b c"), "b-c").resolve("B C") == "b-c"


def test_the_very_wording_is_preferred_to_a_plural():
    classes = make("cell", "cells")
    assert classes.resolve("cell") == "cell"
    assert classes.resolve("Cells") == "cells"


def test_names_in_the_plural_have_a_singular():
    classes = make("diseases", "therapies", "diagnoses", "boxes")
    for wording, name in {"disease": 0, "therapy": 1, "diagnosis": 2, "box": 3}.items():
        assert classes.resolve(wording) == classes.names[name]


@pytest.mark.parametrize("singular", ["disease", "therapy", "diagnosis", "box", "virus", "process", "cell line"])
def test_names_in_the_singular_have_a_plural(singular):
    plurals = {"therapy": "therapies", "diagnosis": "diagnoses", "box": "boxes", "virus": "viruses"}
    plural = plurals.get(singular, f"{singular}es" if singular.endswith("ss") else f"{singular}s")
    assert make("other", singular).resolve(plural) == singular


def test_a_word_that_two_names_join_means_neither():
    classes = make("gene or protein", "protein or peptide", "disease, symptom", "symptom/sign")
    assert classes.resolve("gene") == "gene or protein"
    assert classes.resolve("peptides") == "protein or peptide"
    assert classes.resolve("disease") == "disease, symptom"
    assert classes.resolve("signs") == "symptom/sign"
    for ambiguous in ("protein", "proteins", "symptom", "Symptoms"):
        assert classes.resolve(ambiguous) is None


def test_a_word_that_a_name_joins_is_weaker_than_a_name_or_an_alias():
    assert make("gene or protein", "protein").resolve("proteins") == "protein"
    assert make("gene or protein", ("chemical", "protein")).resolve("protein") == "chemical"


def test_or_is_a_word():
    classes = make("organ", "disorder")
    assert classes.resolve("organ") == "organ"
    assert classes.resolve("gan") is None
    assert classes.resolve("disorders") == "disorder"


def test_commas_need_no_spaces():
    classes = make("disease,symptom or sign")
    assert {classes.resolve(word) for word in ("disease", "symptoms", "sign")} == {"disease,symptom or sign"}


def test_a_word_that_two_names_join_in_different_numbers_means_neither():
    classes = make("cells or organs", "cell or tissue")
    assert classes.resolve("cell") is None


@pytest.mark.parametrize("name", ["S", "es"])
def test_nothing_is_no_class(name):
    assert make(name).resolve("?") is None


# Files


def load(tmp_path, text: str | bytes) -> ClassList:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return load_classes(path)


def refused(tmp_path, text: str | bytes) -> str:
    with pytest.raises(NertoolError) as error:
        load(tmp_path, text)
    assert str(tmp_path / "mine.toml") in error.value.message
    return error.value.message


def test_a_file_of_classes(tmp_path):
    classes = load(
        tmp_path,
        '[[class]]\nname = "Gène"\ndescription = "A gene."\nexamples = ["p53"]\naliases = ["protein"]\n'
        '[[class]]\nname = "disease or symptom"\n',
    )
    assert classes.names == ["Gène", "disease or symptom"]
    assert classes.classes[0].examples == ("p53",)
    assert classes.classes[1].aliases == ()
    assert classes.resolve("GÈNES") == classes.resolve("proteins") == "Gène"
    assert classes.resolve("symptoms") == "disease or symptom"


def test_an_alias_may_repeat_the_name_or_another_alias(tmp_path):
    assert load(tmp_path, '[[class]]\nname = "cell line"\naliases = ["Cell_Line", "cells", "Cells"]\n').names == [
        "cell line"
    ]


BAD = {
    "no classes": ("", "class"),
    "a comment only": ("# nothing\n", "class"),
    "an empty list": ("class = []\n", "class"),
    "no list": ('class = "gene"\n', "class"),
    "a table": ('[class]\nname = "gene"\n', "class"),
    "no TOML": ("[[class]\nname = 1", "TOML"),
    "JSON": ('{"class": []}', "TOML"),
    "no UTF-8": ('[[class]]\nname = "gène"\n'.encode("latin-1"), "TOML"),
    "binary": (b"\x00\xff\xfe", "TOML"),
    "the same key twice": ('[[class]]\nname = "a"\nname = "b"\n', "TOML"),
    "an unknown key": ('[[class]]\nname = "a"\nalias = ["b"]\n', "class.0.alias"),
    "an unknown key at the top": ('title = "x"\n[[class]]\nname = "a"\n', "title"),
    "no name": ('[[class]]\ndescription = "a"\n', "class.0.name"),
    "an empty name": ('[[class]]\nname = "a"\n[[class]]\nname = ""\n', "class.1.name"),
    "a number as a name": ("[[class]]\nname = 5\n", "class.0.name"),
    "one alias, no list": ('[[class]]\nname = "a"\naliases = "b"\n', "class.0.aliases"),
    "a number as an alias": ('[[class]]\nname = "a"\naliases = [5]\n', "class.0.aliases.0"),
    "a name twice": ('[[class]]\nname = "a"\n[[class]]\nname = "a"\n', "two classes"),
    "a name in two cases": ('[[class]]\nname = "Cell line"\n[[class]]\nname = "cell_line"\n', "'cell_line'"),
    "an alias of two": ('[[class]]\nname = "a"\naliases = ["x"]\n[[class]]\nname = "b"\naliases = ["X"]\n', "'X'"),
    "an alias that is another's name": ('[[class]]\nname = "a"\naliases = ["b"]\n[[class]]\nname = "b"\n', "'b'"),
    "a name that is another's alias": ('[[class]]\nname = "b"\n[[class]]\nname = "a"\naliases = ["B."]\n', "'B.'"),
}


@pytest.mark.parametrize(("text", "told"), BAD.values(), ids=BAD)
def test_bad_files_are_refused(tmp_path, text, told):
    assert told in refused(tmp_path, text)


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    message = refused(tmp_path, '[[class]]\nname = ""\n[[class]]\nalias = "x"\nname = "b"\nexamples = 5\n')
    for place in ("class.0.name", "class.1.alias", "class.1.examples"):
        assert place in message


def test_a_missing_file_is_told(tmp_path):
    path = tmp_path / "missing.toml"
    with pytest.raises(NertoolError, match="cannot read the classes") as error:
        load_classes(path)
    assert str(path) in error.value.message


def test_a_folder_is_told(tmp_path):
    with pytest.raises(NertoolError, match="cannot read the classes") as error:
        load_classes(tmp_path)
    assert str(tmp_path) in error.value.message


@pytest.mark.parametrize("text", ['[[class]]\nname = "  "\n', '[[class]]\nname = "a"\naliases = [""]\n'])
def test_names_and_aliases_that_say_nothing_are_refused(tmp_path, text):
    refused(tmp_path, text)
