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
RUN DEVICE="$DEVICE" MODEL="$MODEL" /source/container/build.sh /source /opt/ftbench

FROM python:${PYTHON}
COPY --from=build /opt/ftbench /opt/ftbench
COPY container/entrypoint.sh /opt/ftbench/bin/entrypoint
COPY container/runs /runs
ENV PATH=/opt/ftbench/bin:$PATH \
    FTBENCH_CACHE=/opt/ftbench/cache \
    FTBENCH_RUNS=/runs \
    HF_HOME=/tmp/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin ftbench
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["/opt/ftbench/bin/entrypoint"]
