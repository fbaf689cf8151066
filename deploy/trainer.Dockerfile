# Steps that train: the pipeline with a CUDA build of torch.
#   docker build -f deploy/trainer.Dockerfile -t srlm-trainer .
ARG PIPELINE=srlm-pipeline
FROM ${PIPELINE}

ARG TORCH_INDEX=""
USER root
RUN pip install -c constraints.txt --force-reinstall ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
USER srlm
CMD ["srlm", "doctor"]
