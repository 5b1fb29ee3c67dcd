"""`/`, `/docs`, `/version`, `/ping` and `/openapi.json` say what the server is and takes."""

from __future__ import annotations

import re

import httpx
import msgspec
import pytest

from pawl.http.schemas import ChatBody
from tests.pawl.fake_engine import Served
from tests.pawl.routes import CONTROL


def test_the_root_says_what_this_is_and_its_links_work(client: httpx.Client) -> None:
    page = client.get("/").json()
    assert (page["server"], page["model"]) == ("pawl", "echo")
    for path in (value for value in page.values() if value.startswith("/")):
        assert client.get(path).status_code == 200


def test_version_and_ping_answer(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": "0.0"}
    assert client.get("/ping").status_code == 200


def test_a_ping_needs_no_key() -> None:
    with Served(api_key="secret") as served:
        assert httpx.get(f"{served.url}/ping").status_code == 200
        assert httpx.get(f"{served.url}/docs").status_code == 401


def test_the_description_holds_every_route_and_the_bounds_of_every_field(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    assert description["openapi"].startswith("3.")
    for path, operations in description["paths"].items():
        assert operations
        for operation in operations.values():
            assert operation["summary"], path
    assert "requestBody" in description["paths"]["/abort_request"]["post"]
    content = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/ChatBody"}
    chat = description["components"]["schemas"]["ChatBody"]["properties"]
    assert set(chat) == set(ChatBody.__struct_fields__)
    (top_p,) = [option for option in chat["top_p"]["anyOf"] if option["type"] == "number"]
    assert (top_p["minimum"], top_p["maximum"]) == (0.0, 1.0)


def test_every_reference_of_the_description_leads_somewhere(client: httpx.Client) -> None:
    response = client.get("/openapi.json")
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', response.text))
    assert names
    assert names <= set(response.json()["components"]["schemas"])


@pytest.mark.parametrize("path", ["/v1/completions", "/generate", "/health", "/openapi.json"])
def test_the_page_for_people_lists_the_routes(client: httpx.Client, path: str) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert f"<code>{path}</code>" in page.text


def test_what_tells_our_own_messages_apart_is_no_field_of_a_body(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for path, kind, _ in CONTROL:
        schema = schemas[kind.__name__]
        own = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert set(schema["properties"]) == own
        assert set(schema["required"]) <= own
        if "type" not in own:
            refusal = client.post(path, json={"type": "x"})
            assert refusal.status_code == 400
            assert "unknown field 'type'" in refusal.text
