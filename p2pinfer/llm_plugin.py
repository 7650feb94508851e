"""A plugin of the command ``llm``: the models of a gateway, with schemas and tools.

``llm`` finds it by this package's entry point; nothing else of p2pinfer is loaded.
"""

import os
from collections.abc import Callable

import llm
from llm.default_plugins.openai_models import AsyncChat, Chat

GATEWAY = "http://127.0.0.1:11550"
"""Where ``p2pinfer serve`` listens; ``LLM_P2PINFER_URL`` names another one."""

KEY = "P2PINFER_API_KEY"
"""The variable that has the gateway's key, if it wants one."""


@llm.hookimpl  # type: ignore[untyped-decorator] # llm is installed by those who use it
def register_models(register: Callable[..., None]) -> None:
    """Register ``p2pinfer``, which asks the gateway's own model."""
    url = os.environ.get("LLM_P2PINFER_URL", GATEWAY).rstrip("/")
    made = [
        kind(
            "p2pinfer",
            model_name="default",
            api_base=f"{url}/v1",
            supports_schema=True,
            supports_tools=True,
        )
        for kind in (Chat, AsyncChat)
    ]
    for each in made:
        each.needs_key, each.key_env_var = ("p2pinfer" if os.environ.get(KEY) else None), KEY
    register(*made)
