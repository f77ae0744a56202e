"""The wire under `endpoint`: an `openai` client on `aiohttp`, with a capped body and no redirects.

The `openai` client's own transport takes twice as long per request and reads bodies of any size. Redirects are not
followed: a row goes to the host that was named and to no other.

One address and what becomes of it: `https://host/v1/` -> `https://host/v1`; `http://host/v1` -> refused, unless `host`
is this machine or `allow_http` is set.
"""

import functools
import ipaddress
import logging
import ssl
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies


MAX_BODY_BYTES = 1_000_000
"""Longest response body that is read; a reply of 20,000 characters needs a tenth."""

STAINLESS_HEADERS = (
    "X-Stainless-Arch",
    "X-Stainless-Async",
    "X-Stainless-Lang",
    "X-Stainless-OS",
    "X-Stainless-Package-Version",
    "X-Stainless-Read-Timeout",
    "X-Stainless-Retry-Count",
    "X-Stainless-Runtime",
    "X-Stainless-Runtime-Version",
)
"""What the `openai` client tells a server about this machine; not needed, so not sent."""


class BodyTooLong(OSError):
    """A response body exceeds `MAX_BODY_BYTES`."""


def check_url(base_url: str, *, allow_http: bool) -> str:
    """The address without a trailing slash, if data may go there.

    Raises:
        ValueError: If it is no http(s) address, holds a credential or a query, or is unencrypted to another machine.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("The endpoint's address must look like https://host/v1 or http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        # The address is not repeated here: what is wrong with it is a secret.
        raise ValueError("The endpoint's address holds a credential or a query. Put the key into the environment.")
    if parts.scheme == "http" and not allow_http and not _is_this_machine(parts.hostname):
        raise ValueError(f"{base_url} would send data unencrypted to another machine. Use https, or set allow_http.")
    return base_url.rstrip("/")


def open_client(base_url: str, key: str) -> Any:
    """An `openai.AsyncOpenAI` that sends through aiohttp and retries nothing by itself.

    Raises:
        ImportError: If the `rate` extra is missing.
    """
    try:
        import aiohttp  # noqa: F401 -- what sends
        import openai
    except ImportError as error:
        raise ImportError('Asking an endpoint needs the openai client: pip install "hf-lmmixup[rate]".') from error
    headers: dict[str, Any] = {name: openai.Omit() for name in STAINLESS_HEADERS}
    # A server that compresses could send a bomb; replies are small, so nothing is asked to be compressed.
    headers["Accept-Encoding"] = "identity"
    http_client = _http_client()
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key,
        organization=None,
        project=None,
        max_retries=0,
        timeout=None,
        default_headers=headers,
        http_client=http_client,
    )


def passing_errors() -> tuple[type[BaseException], ...]:
    """What a broken connection raises."""
    import aiohttp
    import openai

    return (openai.APIConnectionError, aiohttp.ClientError, OSError)


def _http_client() -> Any:
    """The client under `openai`'s: it takes a request as `openai` built it, and `aiohttp` sends it.

    httpx's own client would merge cookies, parameters and redirects into every request; none is used here, and that
    takes as long as sending does.
    """
    import httpx2
    from yarl import URL

    class Client(httpx2.AsyncClient):
        """Sends with aiohttp and reads bodies up to the cap."""

        session: Any = None

        def build_request(self, method: str, url: Any, **given: Any) -> Any:
            body = httpx2.ByteStream(given["content"])
            return httpx2.Request(method, parsed(url), headers=given["headers"], stream=body)

        async def send(self, request: Any, **other: Any) -> Any:
            if self.session is None:
                self.session = _open_session()
            async with self.session.request(
                request.method,
                destination(str(request.url)),
                data=request.read(),
                headers=request.headers.multi_items(),
                allow_redirects=False,
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise BodyTooLong(f"a response of more than {MAX_BODY_BYTES} bytes")
            return httpx2.Response(
                response.status, headers=list(response.headers.items()), content=bytes(body), request=request
            )

        async def aclose(self) -> None:
            if self.session is not None:
                await self.session.close()
            await super().aclose()

    parsed = functools.cache(httpx2.URL)  # a run has one address
    destination = functools.cache(functools.partial(URL, encoded=True))
    return Client(timeout=None, trust_env=False)


def _open_session() -> Any:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=_tls()),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),  # one total deadline, above
        trust_env=bool(getproxies()),
    )


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
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
