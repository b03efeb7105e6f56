# One image for each role: docker build --target server|worker|agent .
FROM python:3.12-slim AS base
WORKDIR /app
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home kerf && mkdir /data && chown kerf /data
COPY pyproject.toml README.md LICENSE hatch_build.py ./
COPY device_agent device_agent
COPY search search
COPY kerf kerf
COPY server server
COPY migrations migrations
ENV KERF_DATA_DIR=/data

# With the extra of the search, which converts ONNX files that are uploaded.
FROM base AS server
RUN pip install --no-cache-dir '.[server,search,objects]'
USER kerf
EXPOSE 8321
CMD ["kerf", "server", "--host", "0.0.0.0"]

FROM base AS worker
RUN pip install --no-cache-dir '.[server,search,objects]'
USER kerf
CMD ["kerf", "worker"]

FROM base AS agent
RUN pip install --no-cache-dir '.[agent]'
USER kerf
CMD ["kerf-agent", "run"]
