"""A Label Studio server, through its SDK. Nobody else imports the SDK.

A request is done, or refused for good (`NertoolError`), or nobody knows (`TroubleError`): a time-out, a dropped
connection, a server error. The SDK would send a write again after any of those, and so do it twice; here its retries
are off. What can be repeated without harm is repeated here, as long as the settings allow; what can't is left to the
caller, who has to look first what is there.

Source: the behaviour of Label Studio 1.23 with SDK 2.1, measured.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import orjson

from nertool.console import say
from nertool.errors import NertoolError
from nertool.settings import LabelStudioSettings

try:
    import httpx
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.core.api_error import ApiError
except ImportError as missing:
    raise NertoolError("label_studio_sdk is not installed", "pip install 'nertool[label-studio]'") from missing

Result = TypeVar("Result")

_PAGE = 1000
_LONGEST_REASON_CHARS = 300
_LONGEST_WAIT_SECONDS = 15.0
_REFUSALS_OF_A_TOKEN = 3
_LONG_SECONDS = 900.0  # what concerns all of a large project is done before the first byte comes


class TroubleError(NertoolError):
    """Nobody knows whether the server did what it was asked.

    Args:
        reason: What happened, in words.
        retry_after_seconds: How long the server asks to wait, if it does.
        refused_token: Whether it refuses the token, which it took before.
    """

    def __init__(self, reason: str, retry_after_seconds: float = 0.0, *, refused_token: bool = False) -> None:
        super().__init__(f"Label Studio: {reason}", "the same command goes on where it was")
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.refused_token = refused_token


class TooLargeError(NertoolError):
    """The body of the request is larger than the server, or a proxy before it, takes."""


class Project(NamedTuple):
    """A project, as the server lists it."""

    id: int
    title: str
    description: str
    config: str
    model_version: str
    tasks: int


class Server:
    """A server that has answered and takes the token; used as a context manager.

    Args:
        settings: Where it is, and how to talk to it.

    Raises:
        NertoolError: If the server can't be reached or doesn't take the token, with what to do.
    """

    def __init__(self, settings: LabelStudioSettings) -> None:
        self.settings = settings
        self.url = settings.url.rstrip("/")
        self._token = settings.token.get_secret_value() if settings.token else ""
        if not self._token:
            raise NertoolError(
                "no token for Label Studio is set",
                "copy one from Account & Settings in Label Studio into NERTOOL_LABEL_STUDIO__TOKEN",
            )
        self._known = False  # has it taken the token once?
        self._http: httpx.Client | None = None
        try:
            self._client = self._new_client()
            self._do(self._client.users.whoami)
        except TroubleError as trouble:
            self.close()
            raise NertoolError(
                f"Label Studio at {self.url} doesn't answer: {trouble.reason}",
                "is it running, and is label_studio.url right? (label-studio start)",
            ) from None
        except NertoolError:
            self.close()
            raise
        self._known = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        if self._http is not None:
            self._http.close()

    def project_url(self, project: int) -> str:
        """Returns where people find a project."""
        return f"{self.url}/projects/{project}/data"

    def version(self) -> str:
        """Returns the server's version."""
        return str(self.patiently(lambda: self._get("api/version", {})).get("release", "unknown"))

    # Projects

    def projects(self) -> list[Project]:
        """Returns all projects, not only those of the first page."""

        def listed(**options: Any) -> list[Project]:
            return list(map(_project, self._client.projects.list(**options)))

        return self.patiently(lambda: self._do(listed))

    def create_project(self, title: str, description: str, config: str) -> Project:
        """Makes a project.

        Raises:
            TroubleError: If it may have been made.
        """
        created = self._do(self._client.projects.create, title=title, description=description, label_config=config)
        return Project(int(created.id or 0), title, description, config, "", 0)

    def update_project(self, project: int, **values: str) -> None:
        """Changes `label_config`, `model_version` and the like."""
        self.patiently(lambda: self._do(self._client.projects.update, id=project, **values))

    def delete_project(self, project: int) -> None:
        """Deletes a project with all that is in it."""
        self.patiently(
            lambda: self._send("DELETE", f"api/projects/{project}/", None, seconds=_LONG_SECONDS), gone_is_done=True
        )

    # Tasks and annotations

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """Yields `id`, `data` and `meta` of all tasks, in the order of their ids."""
        page = 1
        while True:
            query = {
                "project": project, "page": page, "page_size": _PAGE, "fields": "task_only",
                "include": "id,data,meta",
            }  # fmt: skip
            answer = self.patiently(lambda query=query: self._get("api/tasks/", query))  # type: ignore[misc]
            yield from answer["tasks"]
            if page * _PAGE >= answer["total"] or not answer["tasks"]:
                return
            page += 1

    def task(self, task: int) -> dict[str, Any]:
        """Returns a task with its annotations and drafts."""
        found: dict[str, Any] = self.patiently(lambda: self._get(f"api/tasks/{task}/", {}))
        return found

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Imports tasks with their annotations: all or none of them.

        Raises:
            TroubleError: If they may have been imported.
            TooLargeError: If they are too many bytes at once.
        """
        answer = self._do(self._client.projects.import_tasks, id=project, request=list(tasks))
        if answer.task_count is None:
            raise NertoolError(
                "this server, as Label Studio Enterprise, imports in the background and doesn't say when it is done",
                "wait until the tasks are there, and run the same command again: only what is missing is sent",
            )

    def update_task(self, task: int, **values: Any) -> None:
        """Changes `data` or `meta`."""
        self.patiently(lambda: self._do(self._client.tasks.update, id=str(task), **values))

    def delete_tasks(self, project: int, tasks: Sequence[int]) -> None:
        """Deletes tasks."""
        for some in _batches(tasks, _PAGE):
            body = {"selectedItems": {"all": False, "included": list(some)}}
            query = {"id": "delete_tasks", "project": project}
            self.patiently(lambda query=query, body=body: self._send("POST", "api/dm/actions/", body, query))  # type: ignore[misc]

    def create_annotation(self, task: int, result: Sequence[Mapping[str, Any]]) -> None:
        """Adds an annotation to a task.

        Raises:
            TroubleError: If it may have been added.
        """
        self._do(self._client.annotations.create, id=task, result=list(result), ground_truth=True)

    def update_annotation(self, annotation: int, result: Sequence[Mapping[str, Any]]) -> None:
        """Replaces what an annotation says."""
        self.patiently(lambda: self._do(self._client.annotations.update, id=annotation, result=list(result)))

    def export(self, project: int) -> list[dict[str, Any]]:
        """Returns all tasks with annotations and drafts, and of predictions the ids."""

        def download(**options: Any) -> Any:
            options["request_options"]["timeout_in_seconds"] = max(_LONG_SECONDS, self.settings.timeout_seconds)
            chunks = self._client.projects.exports.download_sync(
                project, export_type="JSON", download_all_tasks=True, **options
            )
            return orjson.loads(b"".join(chunks))

        tasks: list[dict[str, Any]] = self.patiently(lambda: self._do(download))
        return tasks

    def users(self) -> dict[int, str]:
        """Returns the address of every user, by id."""
        found = self.patiently(lambda: self._get("api/users/", {}))
        listed = found if isinstance(found, list) else found.get("results", [])
        return {int(user["id"]): str(user.get("email") or user.get("username") or user["id"]) for user in listed}

    # Predictions

    def versions(self, project: int) -> dict[str, int]:
        """Returns how many predictions each model version has."""
        found: dict[str, int] = self.patiently(lambda: self._get(f"api/projects/{project}/model-versions/", {}))
        return found

    def predictions(self, project: int) -> list[dict[str, Any]]:
        """Returns all predictions: `id`, `task`, `model_version`, `result` and more."""
        found: list[dict[str, Any]] = self.patiently(
            lambda: self._send("GET", "api/predictions/", None, {"project": project}, _LONG_SECONDS)
        )
        return found

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Imports predictions; sent again they are there twice.

        Raises:
            TroubleError: If they may have been imported.
            TooLargeError: If they are too many bytes at once.
        """
        self._do(self._client.projects.import_predictions, project, request=list(predictions))

    def delete_predictions(self, predictions: Iterable[int]) -> None:
        """Deletes single predictions."""
        for prediction in predictions:
            self.patiently(
                lambda prediction=prediction: self._do(self._client.predictions.delete, id=prediction),  # type: ignore[misc]
                gone_is_done=True,
            )

    def delete_version(self, project: int, version: str) -> None:
        """Deletes all predictions of a model version."""
        self.patiently(
            lambda: self._send(
                "DELETE", f"api/projects/{project}/model-versions/", {"model_version": version}, seconds=_LONG_SECONDS
            )
        )

    # Tabs of the data manager

    def tabs(self, project: int) -> list[dict[str, Any]]:
        """Returns the tabs of a project: `id`, `data`."""
        found: list[dict[str, Any]] = self.patiently(lambda: self._get("api/dm/views/", {"project": project}))
        return found

    def add_tab(self, project: int, data: Mapping[str, Any]) -> None:
        """Makes a tab."""
        self.patiently(lambda: self._do(self._client.views.create, project=project, data=dict(data)))

    # Trouble

    def patiently(self, ask: Callable[[], Result], *, gone_is_done: bool = False) -> Result:
        """Asks for what may be asked twice until it is answered.

        Args:
            ask: Asks once.
            gone_is_done: Whether "not found" is what one wants to hear.

        Raises:
            NertoolError: If it is refused, or there is no answer for as long as the settings allow.
        """
        patience = Patience(self)
        while True:
            try:
                return ask()
            except TroubleError as trouble:
                patience.wait(trouble)
            except _GoneError:
                if gone_is_done:
                    return None  # type: ignore[return-value]
                raise

    def renew(self) -> None:
        """Makes a new connection, with a new access token where the token is of the kind that brings them."""
        self._client = self._new_client()

    def _new_client(self) -> LabelStudio:
        address = urlsplit(self.url)
        local = (address.hostname or "") in ("localhost", "127.0.0.1", "::1")
        verify: Any = self.settings.verify_tls
        if self.settings.ca_file is not None and verify:
            import ssl  # noqa: PLC0415 (for few)

            try:
                verify = ssl.create_default_context(cafile=str(self.settings.ca_file))
            except OSError as error:
                raise NertoolError(
                    f"label_studio.ca_file: {self.settings.ca_file}: {error.strerror or error}", "name a PEM file"
                ) from None
        # A proxy that is set for the internet doesn't lead to this machine.
        self.close()
        self._http = httpx.Client(
            verify=verify, trust_env=not local, timeout=self.settings.timeout_seconds, follow_redirects=False
        )
        # The SDK joins paths as browsers do: without the slash it would lose the last part of `https://host/label-studio`.
        try:
            return LabelStudio(  # type: ignore[no-untyped-call]
                base_url=f"{self.url}/", api_key=self._token, httpx_client=self._http, max_retries=0
            )
        except ApiError as error:  # it looks into tokens of the newer kind, and finds an expired one
            raise self._explain(error) from None

    def _get(self, path: str, query: Mapping[str, Any]) -> Any:
        return self._send("GET", path, None, query)

    def _send(
        self, method: str, path: str, body: Any, query: Mapping[str, Any] | None = None, seconds: float = 0.0
    ) -> Any:
        """Asks what the SDK has no method for, or only a slow one, with its own connection and token.

        `seconds` is how long that may take, if that is longer than usual.
        """

        def send(**options: Any) -> Any:
            options["request_options"]["timeout_in_seconds"] = max(seconds, self.settings.timeout_seconds)
            http = self._client._client_wrapper.httpx_client
            response = http.request(path, method=method, params=dict(query or {}), json=body, **options)
            if response.status_code >= 300:
                raise ApiError(status_code=response.status_code, headers=dict(response.headers), body=response.text)
            return orjson.loads(response.content) if response.content else None

        return self._do(send)

    def _do(self, call: Callable[..., Result], *args: Any, **values: Any) -> Result:
        """Asks once, and says in our words what went wrong.

        Nothing of the SDK's own exceptions is kept: some have the token in them, or all headers.
        """
        options: Any = {"max_retries": 0, "timeout_in_seconds": self.settings.timeout_seconds}
        try:
            result = call(*args, **values, request_options=options)
        except ApiError as error:
            raise self._explain(error) from None
        except httpx.UnsupportedProtocol:
            raise NertoolError(f"label_studio.url: {self.url} is no http or https address") from None
        except httpx.TimeoutException:
            raise TroubleError(f"no answer within {self.settings.timeout_seconds:g} s") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = self._plain(str(error)) or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise NertoolError(
                    f"Label Studio's certificate can't be verified: {reason}",
                    "name your organisation's certificates: --set label_studio.ca_file=FILE.pem",
                ) from None
            raise TroubleError(reason) from None
        except (json.JSONDecodeError, orjson.JSONDecodeError):
            raise self._no_json() from None
        return result

    def _explain(self, error: ApiError) -> Exception:  # noqa: PLR0911 (a table in prose)
        """Returns what a refusing status means."""
        status, reason = error.status_code or 0, self._plain(_reason(error.body))
        if status in (401, 403):
            if self._known:
                return TroubleError(f"status {status}: {reason}", refused_token=True)
            return NertoolError(
                f"Label Studio at {self.url} refuses the token: {reason}", _token_hint(reason, self._token)
            )
        if status == 413:
            return TooLargeError(
                f"the server takes no request so large: {reason}", "raise the limit of the proxy before it"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return TroubleError(f"status {status}: {reason}", _retry_after(error.headers or {}))
        if 300 <= status < 400:
            target = next((value for name, value in (error.headers or {}).items() if name.lower() == "location"), "?")
            parts = urlsplit(target)
            return NertoolError(
                f"Label Studio's address {self.url} leads on to {parts.scheme}://{parts.netloc}{parts.path}",
                "set label_studio.url to the address that the browser shows",
            )
        if 200 <= status < 300:
            return self._no_json()
        if status == 404 and self._known:
            return _GoneError(f"Label Studio knows no such thing: {reason}")
        if status == 404:
            return NertoolError(
                f"there is no Label Studio at {self.url}: {reason}", "check label_studio.url, and the path in it"
            )
        return NertoolError(f"Label Studio refuses the request, status {status}: {reason}")

    def _no_json(self) -> Exception:
        reason = "the answer is a web page or cut off, not JSON"
        if self._known:
            return TroubleError(reason)
        return NertoolError(
            f"{self.url} is no Label Studio, or stands behind a log-in page: {reason}",
            "check label_studio.url; this machine needs an address that leads to Label Studio itself",
        )

    def _plain(self, text: str) -> str:
        """Makes what the server said fit for a message: one short line, and never with the token in it."""
        line = " ".join(text.replace(self._token, "***").split())
        return line if len(line) <= _LONGEST_REASON_CHARS else f"{line[:_LONGEST_REASON_CHARS]}…"


class Patience:
    """How long to go on trying one thing.

    Args:
        server: The server that has trouble.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.progress()

    def progress(self) -> None:
        """Begins anew, since something has worked."""
        self._begun = time.monotonic()
        self._troubles = self._refusals = 0

    def wait(self, trouble: TroubleError) -> None:
        """Waits before the next try.

        Raises:
            NertoolError: If there has been nothing but trouble for as long as the settings allow.
        """
        settings = self._server.settings
        self._refusals += trouble.refused_token
        seconds = max(trouble.retry_after_seconds, min(_LONGEST_WAIT_SECONDS, 0.5 * 2**self._troubles))
        lost = time.monotonic() - self._begun
        if lost + seconds > settings.patience_seconds:
            asked = f", and asks to wait for {seconds:.0f} s" if trouble.retry_after_seconds else ""
            raise NertoolError(
                f"Label Studio at {self._server.url} gives nothing but trouble for {lost:.0f} s now{asked}: "
                f"{trouble.reason}",
                "the same command goes on where it was",
            )
        if self._troubles == 0:
            say(f"Label Studio: {trouble.reason}; trying again for up to {settings.patience_seconds:.0f} s")
        self._troubles += 1
        time.sleep(seconds)
        if trouble.refused_token:
            try:
                self._server.renew()
            except TroubleError as refused:  # the token itself has expired
                trouble = refused
                self._refusals = _REFUSALS_OF_A_TOKEN
        if self._refusals >= _REFUSALS_OF_A_TOKEN:
            raise NertoolError(
                f"Label Studio doesn't take the token any more: {trouble.reason}",
                "set NERTOOL_LABEL_STUDIO__TOKEN to a valid one; the same command then goes on where it was",
            )


class _GoneError(NertoolError):
    """Not found, on a server that is known to be one."""


def _project(one: Any) -> Project:
    return Project(
        int(one.id),
        one.title or "",
        one.description or "",
        one.label_config or "",
        one.model_version or "",
        one.task_number or 0,
    )


def _reason(body: Any) -> str:
    if isinstance(body, str):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError:
            return "a web page" if "<html" in body[:1000].lower() else body
    if isinstance(body, dict):
        detail = str(body.get("detail") or body.get("error") or body)
        wrong = body.get("validation_errors")
        return f"{detail}: {json.dumps(wrong)}" if wrong else detail
    return str(body)


def _token_hint(reason: str, token: str) -> str:
    if "legacy token" in reason:
        return (
            "use a personal access token (Account & Settings → Personal Access Token), or switch legacy tokens on "
            "(Organization → API Tokens Settings)"
        )
    if token.count(".") == 2 and "not provided" in reason:
        return (
            "personal access tokens may be switched off (Organization → API Tokens Settings); a legacy token then works"
        )
    return "copy a valid one from Account & Settings in Label Studio into NERTOOL_LABEL_STUDIO__TOKEN"


def _retry_after(headers: Mapping[str, str]) -> float:
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    return float(value) if value.isdigit() else 0.0


def _batches(items: Sequence[Result], size: int) -> Iterator[Sequence[Result]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
