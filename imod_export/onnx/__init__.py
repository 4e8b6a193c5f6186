"""ONNX: a merged model as four graphs in the layout of transformers.js, and a runtime for them without torch.

layout.py       names of files, inputs and outputs          export.py      a model folder to an onnx folder
components.py   AVT's parts as modules with named tensors   variants.py    float16, int8 and 4-bit forms
omni.py         Qwen2.5-Omni's parts                        parity.py      the graphs against transformers
graph.py        one module to one checked file              report.py      its section of the parity report

runtime.py      answers from an onnx folder: numpy, onnxruntime and tokenizers only
sessions.py     onnxruntime sessions and the KV cache       avt_inputs.py  what AVT's processor makes, without torch
pictures.py     resizing and normalising                    omni_inputs.py what Qwen2.5-Omni's processor makes
chat.py         chat template and tokenizer
"""
