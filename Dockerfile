# gpt2kit in a container, with PyTorch for CPUs or for CUDA. Not run yet: no Docker daemon was available.
#
#   docker build --tag gpt2kit .
#   docker build --tag gpt2kit --build-arg TORCH=cu130 .    # or another build that pytorch.org lists
#   docker run --rm --interactive --tty --volume "$PWD:/work" gpt2kit train my_texts/
#   docker run --rm --volume "$PWD:/work" --gpus all gpt2kit train my_texts/
FROM python:3.11-slim

# torch.compile needs a C++ compiler on a CPU.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH=cpu
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/${TORCH}

COPY . /src
RUN pip install --no-cache-dir "/src[demo,plots,parquet,zstd]"

# Text, tokenized text and runs are in the mounted folder.
WORKDIR /work
ENTRYPOINT ["gpt2kit"]
