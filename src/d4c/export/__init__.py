"""An artifact translated, with numpy and onnx alone, to graphs that integer runtimes run."""
