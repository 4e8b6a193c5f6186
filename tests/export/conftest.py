"""A tiny AVT base, LoRA adapters with random B on it, and run folders as training leaves them."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TARGETS = r".*\.language_model\..*\.(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
PROJECTORS = ["vision_projector", "audio_projector"]


class Forge:
    """Makes bases, adapters and runs under one folder."""

    def __init__(self, root: Path):
        self.root = root
        self.base = root / "base"

    def build_base(self) -> Path:
        from imod_core.avt.build import build_base

        build_base(self.base, preset="tiny", llm=None, vision=None, audio=None, seed=0, dtype="float32")
        return self.base

    def load(self, folder: Path, dtype=torch.float32):
        import imod_core.avt  # noqa: F401

        return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()

    def adapter(self, name: str, base: Path | None = None, b_std: float = 0.05, **changes) -> Path:
        """A PEFT adapter folder with random A and B and moved projectors; existing ones are used again."""
        folder = self.root / name
        if folder.exists():
            return folder
        settings = {
            "r": 4,
            "lora_alpha": 16,
            "target_modules": TARGETS,
            "modules_to_save": PROJECTORS,
            "task_type": "CAUSAL_LM",
        }
        torch.manual_seed(1)
        model = peft.get_peft_model(self.load(base or self.base), peft.LoraConfig(**{**settings, **changes}))
        for key, parameter in model.named_parameters():
            if "lora_B" in key or "lora_embedding_A" in key:
                torch.nn.init.normal_(parameter, std=b_std)
            elif ".modules_to_save." in key:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder, save_embedding_layers=False)
        return folder

    def run(self, name: str, adapter: Path, base: Path) -> Path:
        """A run folder around an adapter, with its manifest."""
        import shutil

        from imod_core.artifacts import model_identity, write_manifest

        run = self.root / name
        shutil.copytree(adapter, run / "adapter")
        write_manifest(run, "run", method="imod", base={"path": str(base), "blake3": model_identity(base)})
        return run


@pytest.fixture(scope="session")
def forge(tmp_path_factory) -> Forge:
    forge = Forge(tmp_path_factory.mktemp("forge"))
    forge.build_base()
    return forge


@pytest.fixture(scope="session")
def base(forge) -> Path:
    return forge.base


@pytest.fixture(scope="session")
def adapter(forge) -> Path:
    """Rank 4 on all linears of the LLM, projectors as saved modules."""
    return forge.adapter("adapter")


@pytest.fixture(scope="session")
def run_folder(forge, adapter, base) -> Path:
    return forge.run("run", adapter, base)


@pytest.fixture(scope="session")
def merged(forge, run_folder) -> Path:
    """The run merged and compared by the command itself."""
    from click.testing import CliRunner

    from imod_core.cli import imod

    out = forge.root / "merged"
    result = CliRunner().invoke(imod, ["export", "--merge", str(run_folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def sharded_base(forge) -> Path:
    """The tiny base in several shards with an index, everything else as it was."""
    import shutil

    folder = forge.root / "sharded"
    shutil.copytree(forge.base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    saved = forge.root / "sharded-weights"
    forge.load(forge.base).save_pretrained(saved, max_shard_size="200KB")
    for path in saved.glob("model*"):
        shutil.copy(path, folder / path.name)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="session")
def exported(forge, merged) -> Path:
    """The merged folder as ONNX in every form, compared by the command itself."""
    from click.testing import CliRunner

    from imod_core.cli import imod

    out = forge.root / "exported"
    words = ["export", "--model", str(merged), "--onnx", "--onnx-variants", "fp16,int8,q4", "--out", str(out)]
    result = CliRunner().invoke(imod, words)
    assert result.exit_code == 0, result.output + str(result.exception)
    return out


@pytest.fixture(scope="session")
def onnx_folder(exported) -> Path:
    return exported / "onnx"
