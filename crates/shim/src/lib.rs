//! Preloaded into an unmodified QEMU: hands its memory over to be served.
