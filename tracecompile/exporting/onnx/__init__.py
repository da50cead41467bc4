"""The step of a network as an ONNX model, with states in and out."""
