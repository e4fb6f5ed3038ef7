# An image for NVIDIA GPUs (CUDA 13.0). Build it in the checkout:
#   docker build -f examples/deployment/gpu.Dockerfile -t tts-assets:gpu .
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir uv==0.13.8
ENV VIRTUAL_ENV=/opt/venv UV_NO_CACHE=1
WORKDIR /source
COPY locks/gpu.txt locks/gpu.txt
# torch first, in the build for CUDA 13.0; then the locked packages. Changes of the code keep these layers.
RUN /opt/venv/bin/uv pip install --torch-backend=cu130 --no-deps $(grep -E '^torch==' locks/gpu.txt) \
    && /opt/venv/bin/uv pip install --no-deps -r locks/gpu.txt
COPY . .
RUN /opt/venv/bin/uv pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
# Triton compiles kernels when a program starts.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 tts \
    && install -d -o tts -g tts /project /srv/dagster
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    DAGSTER_HOME=/srv/dagster \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TTS_HEALTH_URL=http://127.0.0.1:3000/server_info
USER tts
WORKDIR /project
EXPOSE 3000 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(os.environ['TTS_HEALTH_URL'], timeout=5)"]
ENTRYPOINT ["tts-assets"]
CMD ["--help"]
