# An image for CPUs. Build it in the checkout:
#   docker build -f examples/deployment/cpu.Dockerfile -t tts-assets:cpu .
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir uv==0.13.8
ENV VIRTUAL_ENV=/opt/venv UV_NO_CACHE=1
WORKDIR /source
COPY locks/cpu.txt locks/cpu.txt
# torch first, in the build for CPUs; then the locked packages. Changes of the code keep these layers.
RUN /opt/venv/bin/uv pip install --torch-backend=cpu --no-deps $(grep -E '^torch==' locks/cpu.txt) \
    && /opt/venv/bin/uv pip install --no-deps -r locks/cpu.txt
COPY . .
RUN /opt/venv/bin/uv pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 tts \
    && install -d -o tts -g tts /project /srv/dagster
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    DAGSTER_HOME=/srv/dagster \
    TTS_HEALTH_URL=http://127.0.0.1:3000/server_info
USER tts
WORKDIR /project
EXPOSE 3000 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(os.environ['TTS_HEALTH_URL'], timeout=5)"]
ENTRYPOINT ["tts-assets"]
CMD ["--help"]
