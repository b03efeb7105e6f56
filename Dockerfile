# syntax=docker/dockerfile:1
# One image for each role: docker build --target server|worker|agent .

# The compiler stays here: the images get the finished wheel with its native library.
FROM python:3.12-slim AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE hatch_build.py ./
COPY device_agent device_agent
COPY search search
COPY kerf kerf
COPY server server
COPY migrations migrations
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS base
# A number, so that orchestrators can see that it is not root.
RUN useradd --uid 10001 --create-home kerf \
    && install -d -o kerf -g kerf /data
WORKDIR /data
ENV KERF_DATA_DIR=/data \
    KERF_LOG_JSON=1 \
    XDG_CACHE_HOME=/data/cache \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /data

# With the extra of the search, which converts ONNX files that are uploaded.
FROM base AS server
# Where pip finds torch's build for CPUs: the usual one brings gigabytes for GPUs.
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/kerf-*.whl)[server,search,objects,telemetry]"
USER 10001
EXPOSE 8321
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8321/readyz', timeout=2)"]
CMD ["kerf", "server", "--host", "0.0.0.0"]

FROM base AS worker
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/kerf-*.whl)[server,search,objects]"
USER 10001
CMD ["kerf", "worker"]

FROM base AS agent
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/kerf-*.whl)[agent]"
USER 10001
CMD ["kerf-agent", "run", "--state-dir", "/data/agent"]
