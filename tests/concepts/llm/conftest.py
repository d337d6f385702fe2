from llm_server import module, server

__all__ = ["module", "server"]
