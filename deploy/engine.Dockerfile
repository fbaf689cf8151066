# Steps that write and judge, and a whole box with GPUs: the trainer with vLLM in an environment of its own, for
# `engine.vllm_python: /opt/vllm/bin/python`.
#   docker build -f deploy/engine.Dockerfile -t srlm-engine .
ARG TRAINER=srlm-trainer
FROM ${TRAINER}

ARG VLLM=vllm==0.33.0
USER root
# vLLM compiles kernels when it starts.
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/vllm && /opt/vllm/bin/pip install "$VLLM"
USER srlm
CMD ["srlm", "doctor"]
