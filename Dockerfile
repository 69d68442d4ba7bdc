# The sidecar as an image: `--target cpu` or `--target gpu`. See docs/deploy.md.
#
# Every Python package comes from a file with hashes, but for torch: its version is pinned by constraints.txt, and its
# index is an argument. A release passes BASE with a digest.
ARG BASE=python:3.11-slim

# The empty virtual environment that all stages fill. It has no pip: that of the base image installs into it.
FROM ${BASE} AS venv
ENV PIP_ONLY_BINARY=:all: PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/selector
WORKDIR /build
COPY deploy/image/tidy.py ./

# Our own packages: small, and the only part that changes with our code.
FROM venv AS application
ARG PIP_FIND_LINKS
COPY deploy/image/requirements-build.txt ./
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --no-compile --no-deps --require-hashes --requirement requirements-build.txt
COPY . ./source/
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels ./source \
 && python -m pip --python /opt/selector install --no-compile --no-deps --no-index wheels/*.whl \
 && /opt/selector/bin/python tidy.py /opt/selector

# What they need: one large layer, the same as long as no pin changes.
FROM venv AS packages-cpu
ARG PIP_FIND_LINKS
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt deploy/image/requirements-cpu.txt ./
RUN python -m pip --python /opt/selector install --no-compile --no-deps --require-hashes --requirement requirements-cpu.txt \
 && python -m pip --python /opt/selector install --no-compile --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    --constraint constraints.txt torch \
 && /opt/selector/bin/python tidy.py /opt/selector

# PyPI's torch is the CUDA build; CUDA's libraries come as wheels, so that the base needs none.
FROM venv AS packages-gpu
ARG PIP_FIND_LINKS
ARG TORCH_INDEX=
COPY constraints.txt deploy/image/requirements-gpu.txt ./
RUN python -m pip --python /opt/selector install --no-compile --no-deps --require-hashes --requirement requirements-gpu.txt \
 && python -m pip --python /opt/selector install --no-compile --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    --constraint constraints.txt torch \
 && /opt/selector/bin/python tidy.py /opt/selector

# Both together must agree and be importable; what they are is written down.
FROM packages-cpu AS checked-cpu
COPY --from=application /opt/selector /opt/selector
COPY deploy/image/sbom.py ./
RUN python -m pip --python /opt/selector check \
 && /opt/selector/bin/python -c "import selector_server.app" \
 && /opt/selector/bin/python sbom.py sbom.json

FROM packages-gpu AS checked-gpu
COPY --from=application /opt/selector /opt/selector
COPY deploy/image/sbom.py ./
RUN python -m pip --python /opt/selector check \
 && /opt/selector/bin/python -c "import selector_server.app" \
 && /opt/selector/bin/python sbom.py sbom.json

# What both images share: the base without its installers, and how the sidecar starts.
FROM ${BASE} AS runtime
RUN rm -rf /usr/local/bin/pip* /usr/bin/pip* /usr/local/lib/python3*/ensurepip /usr/lib/python3*/ensurepip \
    /usr/local/lib/python3*/site-packages/* /usr/lib/python3/dist-packages/* /usr/share/python-wheels
# [::] is every address, IPv6 and IPv4, and IPv4 alone where IPv6 is off.
# The working directory, home and temporary folder is the one that may be writable; nothing needs it to be.
ENV PATH=/opt/selector/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SELECTOR_LISTEN=[::]:50051 \
    SELECTOR_HEALTH_LISTEN=127.0.0.1:50053 \
    SELECTOR_METRICS_LISTEN=[::]:9464
WORKDIR /tmp
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# At the address of health alone: it knows neither certificates nor tokens.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD ["selector", "health"]
ENTRYPOINT ["selector"]
CMD ["serve"]
# Version, revision and source are labels that the build is told (`make image`): as arguments, some engines' caches would
# keep old ones.
LABEL org.opencontainers.image.title="jest-selector" \
      org.opencontainers.image.description="Data-selection sidecar for contrastive image-text training" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS gpu
# What the NVIDIA container runtime mounts; which GPUs, the engine or Kubernetes says.
ENV SELECTOR_DEVICE=cuda NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/selector /opt/selector
COPY --from=application /opt/selector /opt/selector
COPY --from=checked-gpu /build/sbom.json /usr/share/selector/sbom.json

FROM runtime AS cpu
COPY --from=packages-cpu /opt/selector /opt/selector
COPY --from=application /opt/selector /opt/selector
COPY --from=checked-cpu /build/sbom.json /usr/share/selector/sbom.json
