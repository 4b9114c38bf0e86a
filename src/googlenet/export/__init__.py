"""Export of trained networks to other programs: ONNX, OpenVINO, ncnn and torch.export."""
