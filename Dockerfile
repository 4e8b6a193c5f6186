# Images: `serve` for NVIDIA GPUs, `serve-cpu`, and `demo`, the page. docs/deploy.md says how to build and run them.
# A digest pins harder than a tag: --build-arg PYTHON_IMAGE=python@sha256:…
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${PYTHON_IMAGE} AS tools
RUN python3 -m venv /opt/tools && /opt/tools/bin/pip install --no-cache-dir uv==0.13.9

FROM tools AS wheel
WORKDIR /src
COPY . .
RUN /opt/tools/bin/uv build --no-cache --wheel --build-constraints constraints.txt --out-dir /dist

# What is written while it runs goes to /tmp, so that the root can be read-only.
FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 10001 --no-create-home --home-dir /tmp imod
ENV PATH=/opt/imod/bin:/opt/tools/bin:$PATH \
    VIRTUAL_ENV=/opt/imod \
    HOME=/tmp \
    UV_NO_CACHE=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_PYTHON_DOWNLOADS=never \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /src

# Packages come in layers of their own, which a change of our source leaves alone. CPU torch comes first and exactly: a
# range would bring several gigabytes of CUDA packages. vLLM's CPU kernels link libnuma.
FROM runtime AS serve-cpu
ARG TORCH_OPTIONS="--torch-backend cpu"
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
# hadolint ignore=SC2086
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,source=constraints.txt,target=/src/constraints.txt \
    uv venv /opt/imod && uv pip install ${TORCH_OPTIONS} --constraint constraints.txt torch==2.13.0
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=constraints.txt,target=/src/constraints.txt \
    uv pip install --constraint constraints.txt --requirement pyproject.toml --extra serve-cpu
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=wheel,source=/dist,target=/dist \
    uv pip install --no-deps /dist/*.whl
WORKDIR /tmp
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=8)"]
ENTRYPOINT ["imod", "serve", "--host", "0.0.0.0", "--log", "-"]
CMD ["/model"]

FROM runtime AS demo
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=constraints.txt,target=/src/constraints.txt \
    uv venv /opt/imod && uv pip install --constraint constraints.txt --requirement pyproject.toml --extra demo
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=wheel,source=/dist,target=/dist \
    uv pip install --no-deps /dist/*.whl
WORKDIR /tmp
USER 10001
EXPOSE 7860
HEALTHCHECK --interval=15s --timeout=10s --start-period=2m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/', timeout=8)"]
ENTRYPOINT ["imod", "demo", "--host", "0.0.0.0"]
CMD ["--url", "http://server:8000", "--no-examples"]

# What vLLM's image has keeps its version; what it lacks comes in the version of constraints.txt. vLLM's images do not
# have Ray: --build-arg EXTRAS=serve,ray for several hosts.
FROM ${VLLM_IMAGE} AS serve
ARG EXTRAS=serve
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    uv pip freeze --system | grep -E '^[^ ]+==' > /tmp/pins.txt && \
    awk -F == 'NR == FNR { has[$1]; next } !($1 in has)' /tmp/pins.txt /constraints.txt > /tmp/more.txt && \
    wheel=$(echo /dist/*.whl) && \
    uv pip install --system --no-cache --constraint /tmp/pins.txt --constraint /tmp/more.txt "${wheel}[${EXTRAS}]" && \
    rm /tmp/pins.txt /tmp/more.txt && \
    useradd --uid 10001 --no-create-home --home-dir /tmp imod
ENV HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=8)"]
ENTRYPOINT ["imod", "serve", "--host", "0.0.0.0", "--log", "-"]
CMD ["/model"]
