"""A folder that runs one network: program image, C and Python examples, and the library as one source file."""

from device_agent.native.deployment.folder import write_deployment

__all__ = ["write_deployment"]
