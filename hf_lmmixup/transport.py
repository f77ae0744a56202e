"""The wire under `endpoint`: an `openai` client that sends through `aiohttp`, with a capped body and no redirects.

The `openai` client knows the address, the key and the headers. What it does around each attempt (options copied, the
address parsed, retries, types) takes three times as long as the sending and the reading, and it reads bodies of any
size; here its `post` does nothing else. Redirects are not followed: a row goes to the host that was named and to no
other.

One address and what becomes of it: `https://host/v1/` -> `https://host/v1`; `http://host/v1` -> refused, unless `host`
is this machine or `allow_http` is set.
"""

import functools
import ipaddress
import json
import logging
import os
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from hf_lmmixup.secrecy import TOKEN


MAX_BODY_BYTES = 1_000_000
"""Longest response body that is read; a reply of 20,000 characters needs a tenth."""

ABOUT_THIS_MACHINE = "x-stainless-"
"""How the names of headers begin in which the `openai` client tells a server about this machine; they are not sent."""

ABOUT_THE_ACCOUNT, OPENAI = "openai-", ".openai.com"
"""How the names of headers begin that say whose account it is (from `OPENAI_ORG_ID`), and whose hosts may know it."""


class BodyTooLong(OSError):
    """A response body exceeds `MAX_BODY_BYTES`."""


def check_url(base_url: str, *, allow_http: bool, key_variable: str = "OPENAI_API_KEY") -> str:
    """The address without a trailing slash, if data may go there.

    Raises:
        ValueError: If it is no http(s) address, holds a credential or a query, or is unencrypted to another machine.
            Also if the key stands in the place of its variable's name.
    """
    if not key_variable.isidentifier() or TOKEN.search(key_variable):
        # It is not repeated here: settings and messages are no place for a key.
        raise ValueError(
            "The key's variable is the name of one, such as OPENAI_API_KEY. Put the key into that variable."
        )
    try:
        parts = urlsplit(base_url)
        host = None if parts.port == 0 else parts.hostname
    except ValueError:  # half a bracket, or a port that is no number
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError("The endpoint's address must look like https://host/v1 or http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        # The address is not repeated here: what is wrong with it is a secret.
        raise ValueError("The endpoint's address holds a credential or a query. Put the key into the environment.")
    if parts.scheme == "http" and not allow_http and not _is_this_machine(host):
        raise ValueError(f"{base_url} would send data unencrypted to another machine. Use https, or set allow_http.")
    return base_url.rstrip("/")


def read_key(base_url: str, key_variable: str) -> str:
    """The key in an environment variable; empty where an unencrypted server is asked without one.

    Raises:
        ValueError: If an encrypted server's key is missing, or it is more than a key.
    """
    key = os.environ.get(key_variable, "").strip()  # as files that hold one end with a line break
    if not key and base_url.startswith("https"):
        raise ValueError(f"The environment variable {key_variable} is not set. Set it to the server's key.")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"The environment variable {key_variable} holds more than a key. Set it anew.")
    return key


class Response(NamedTuple):
    """What a server sent: its status, its headers by name in any case, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def open_client(base_url: str, key: str) -> Any:
    """An `openai.AsyncOpenAI` whose `post` sends once, through aiohttp, and returns a `Response` of any status.

    Raises:
        ImportError: If the `rate` extra is missing.
    """
    try:
        import aiohttp  # noqa: F401 -- what sends
        import openai
    except ImportError as error:
        raise ImportError('Asking an endpoint needs the openai client: pip install "hf-lmmixup[rate]".') from error

    class Client(openai.AsyncOpenAI):
        """Posts JSON to one server, with one set of headers."""

        session: Any = None

        async def post(self, path: str, *, body: Any = None, **other: Any) -> Any:
            if self.session is None:
                self.session = _open_session(base_url)
                self.headers = _headers(self)
            async with self.session.post(
                destination(path),
                data=encode(body).encode(),
                headers=self.headers,
                allow_redirects=False,
            ) as response:
                received = bytearray()
                async for chunk in response.content.iter_any():
                    received += chunk
                    if len(received) > MAX_BODY_BYTES:
                        raise BodyTooLong(f"a response of more than {MAX_BODY_BYTES} bytes")
            return Response(response.status, response.headers, bytes(received))

        async def close(self) -> None:
            if self.session is not None:
                await self.session.close()
            await super().close()

    encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
    destination = functools.cache(functools.partial(_url, base_url))  # a run has one or two addresses
    unused = openai.DefaultAsyncHttpxClient(trust_env=False)  # else a SOCKS proxy of the environment ends the run here
    return Client(base_url=base_url, api_key=key, http_client=unused, max_retries=0, timeout=None)


def passing_errors() -> tuple[type[BaseException], ...]:
    """What a broken connection raises."""
    import aiohttp

    return (aiohttp.ClientError, OSError)


def is_lost(error: BaseException) -> bool:
    """Whether no connection was made at all, so that the fault cannot lie with what was asked."""
    import aiohttp

    return isinstance(error, aiohttp.ClientConnectorError)


def _headers(client: Any) -> dict[str, str]:
    """The headers of the `openai` client, with its key and without what they tell about this machine and account."""
    is_openai = str(client.base_url.host).endswith(OPENAI)
    hidden = (ABOUT_THIS_MACHINE,) if is_openai else (ABOUT_THIS_MACHINE, ABOUT_THE_ACCOUNT)
    headers = {
        name: value
        for name, value in {**client.default_headers, **client.auth_headers}.items()
        if isinstance(value, str) and not name.lower().startswith(hidden)
    }
    # A server that compresses could send a bomb; replies are small, so nothing is asked to be compressed.
    return {**headers, "Accept-Encoding": "identity"}


def _url(base_url: str, path: str) -> Any:
    """The address of a path such as `/chat/completions`, as it is: nothing in it is encoded a second time."""
    from yarl import URL

    return URL(base_url + path, encoded=True)


def _open_session(base_url: str) -> Any:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=_tls() if base_url.startswith("https") else True),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),  # one total deadline, above
        proxy=_proxy(base_url),  # by `trust_env` aiohttp would put what `.netrc` knows into the place of the key
    )


def _proxy(base_url: str) -> str | None:
    """The proxy that the environment names for an address; none for this machine's, or its rows would leave it."""
    parts = urlsplit(base_url)
    if _is_this_machine(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    proxy = getproxies().get(parts.scheme)
    if proxy and "://" not in proxy:  # as curl reads it
        proxy = f"http://{proxy}"
    if proxy and not proxy.startswith(("http://", "https://")):
        raise ValueError(f"{parts.scheme}_proxy names no http proxy. Name one, or the endpoint's host in no_proxy.")
    return proxy


def _tls() -> ssl.SSLContext:
    """The system's certificates, and certifi's where the system has none."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        try:
            import certifi
        except ImportError:
            logging.getLogger(__name__).warning("This system has no certificates; https will fail. Install certifi.")
        else:
            context.load_verify_locations(certifi.where())
    return context


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified  # 0.0.0.0, as servers print it when they start
    except ValueError:
        return False
