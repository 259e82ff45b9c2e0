# ftbench serve, with the default model and the runs in container/runs.
#
#   docker build --tag ftbench .                           for processors
#   docker build --tag ftbench --build-arg DEVICE=cuda .   for NVIDIA GPUs
#   docker run --env FTBENCH_API_KEY=… --publish 127.0.0.1:8000:8000 --volume ./runs:/runs:ro ftbench
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG DEVICE=cpu
ARG MODEL=smollm2-135m-instruct
COPY . /source
# Runs may have been written for their owner alone, and the image's user is another.
RUN DEVICE="$DEVICE" MODEL="$MODEL" /source/container/build.sh /source /opt/ftbench \
    && chmod -R a+rX /source/container/runs

FROM python:${PYTHON}
COPY --from=build /opt/ftbench /opt/ftbench
COPY container/entrypoint.sh /opt/ftbench/bin/entrypoint
COPY --from=build /source/container/runs /runs
ENV PATH=/opt/ftbench/bin:$PATH \
    FTBENCH_BAKED=/opt/ftbench/cache \
    FTBENCH_CACHE=/tmp/ftbench \
    FTBENCH_RUNS=/runs \
    HF_HOME=/tmp/ftbench/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin ftbench
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; port = os.environ.get('FTBENCH_PORT') or 8000; urlopen(f'http://127.0.0.1:{port}/healthz', timeout=4)"]
ENTRYPOINT ["/opt/ftbench/bin/entrypoint"]
