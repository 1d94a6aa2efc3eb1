# robustill as an image. On a machine without a GPU, PyTorch's index of CPU builds keeps it small:
#   docker build -t robustill --build-arg PIP_EXTRA_INDEX_URL=INDEX .
# For NVIDIA GPUs; PyTorch's wheels bring the libraries of CUDA, the base those that the driver needs:
#   docker build -t robustill:cuda --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
# docs/how-to/several-machines.md says how a cluster runs it.
ARG BASE=python:3.12-slim
FROM ${BASE}

# Such as [vision,cluster].
ARG EXTRAS=
# An argument of pip: a further index of packages.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The images of CUDA have no Python.
RUN command -v python3 > /dev/null || { \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/robustill
ENV PATH=/opt/robustill/bin:$PATH

# PyTorch first: its layer stays when the source changes.
COPY constraints.txt /src/
RUN pip install -c /src/constraints.txt torch
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install -c /src/constraints.txt "/src${EXTRAS}"

RUN useradd --create-home --uid 10001 robustill && install -d -o robustill /storage
USER robustill
WORKDIR /storage
ENTRYPOINT ["robustill"]
CMD ["--help"]
