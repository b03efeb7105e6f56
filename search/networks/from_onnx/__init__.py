"""ONNX files as `.kerf` networks: read and checked (`model`), walked (`writer`, `layers`, `rules`), and compared with
the file (`convert`).
"""
