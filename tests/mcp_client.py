#!/usr/bin/env python3
"""Calls tools of a service with the official client of the Model Context Protocol.

Reads {"url", "token", "mode", "calls": [{"name", "arguments"}, …]} from standard input, and prints what the client was given:
{"protocol", "server", "instructions", "tools", "results": [{"is_error", "structured", "text", "refused"}, …]}. `mode` is `auto`, which
asks for the newest version of the protocol, or `legacy`, which begins with a handshake as clients before 2026-07-28 do.
"""

import asyncio
import json
import sys

import httpx2
import jsonschema
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError


async def call(client, name, arguments):
    try:
        result = await client.call_tool(name, arguments)
    except MCPError as error:
        return {"refused": error.error.message}
    text = [block.text for block in result.content if block.type == "text"]
    return {"is_error": result.is_error, "structured": result.structured_content, "text": text}


async def main():
    given = json.load(sys.stdin)
    headers = {"authorization": f"Bearer {given['token']}"} if given.get("token") else {}
    async with httpx2.AsyncClient(headers=headers) as http:
        async with Client(streamable_http_client(given["url"], http_client=http), mode=given["mode"]) as client:
            tools = (await client.list_tools()).tools
            for tool in tools:
                jsonschema.Draft202012Validator.check_schema(tool.input_schema)
            results = [await call(client, one["name"], one.get("arguments")) for one in given["calls"]]
            print(
                json.dumps(
                    {
                        "protocol": client.protocol_version,
                        "server": client.server_info.name,
                        "instructions": client.instructions,
                        "tools": [tool.model_dump(by_alias=True, exclude_none=True) for tool in tools],
                        "results": results,
                    }
                )
            )


if __name__ == "__main__":
    asyncio.run(main())
