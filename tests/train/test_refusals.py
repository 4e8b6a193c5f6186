"""What IMoD cannot do right it refuses in one sentence, before anything is changed."""

import pytest
import torch
from peft import get_peft_model

from imod_core.errors import InputError
from imod_train import ImodConfig, attach
from imod_train.projection import ImodLinear

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)


def refusal(build, config=None, match=""):
    model = build()
    with pytest.raises(InputError, match=match) as caught:
        attach(model, config or ImodConfig())
    assert not any(isinstance(module, ImodLinear) for module in model.modules())
    return str(caught.value)


def test_what_cannot_be_partitioned_is_refused_in_one_sentence(tiny):
    refusal(tiny.make_base, match="found Qwen2ForCausalLM; call peft.get_peft_model first")
    refusal(lambda: tiny.make_lora(use_dora=True), match="LoRA variant Dora")
    refusal(lambda: tiny.make_lora(target_modules=["embed_tokens"]), match="embedding 'model.embed_tokens'")
    refusal(lambda: tiny.make_lora().half(), match="is torch.float16")
    refusal(
        lambda: tiny.make_lora(base=tiny.make_base(image_token_id=None, audio_token_id=None)),
        match="names no image_token_id",
    )
    refusal(lambda: get_peft_model(tiny.make_base(), ia3(tiny)), match="is of type IA3")
    refusal(lambda: frozen(tiny), match="is frozen; load the adapter with is_trainable=True")
    refusal(lambda: with_tower(tiny), match="LoRA is on 'model.vision_tower.q_proj'")
    refusal(lambda: with_convolution(tiny), match="is a Conv1d on a Conv1d")
    refusal(tiny.make_lora, ImodConfig(shared_ratio=1.0), match="shared block of 1.20")
    with pytest.raises(InputError, match="no adapter 'other', only default"):
        attach(tiny.make_lora(), ImodConfig(), "other")


def ia3(tiny):
    from peft import IA3Config

    return IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")


def frozen(tiny):
    model = tiny.make_lora()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def with_tower(tiny):
    base = tiny.make_base()
    base.model.vision_tower = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 4)})
    return tiny.make_lora(base=base)


def with_convolution(tiny):
    base = tiny.make_base()
    base.model.mixer = torch.nn.Conv1d(4, 4, 3)
    return tiny.make_lora(base=base, target_modules=["mixer"])


def test_a_batch_without_input_ids_is_refused_in_training_only(tiny):
    model = tiny.make_lora()
    attach(model, STRONG)
    embeds = torch.randn(1, 5, 16)
    with pytest.raises(InputError, match="without input_ids"):
        model(inputs_embeds=embeds)
    with torch.no_grad():
        assert model.eval()(inputs_embeds=embeds).logits.shape == (1, 5, tiny.VOCABULARY)


def test_a_module_that_sees_other_tokens_is_refused(tiny):
    model = tiny.make_lora(target_modules=["q_proj", "lm_head"])
    attach(model, STRONG)
    with pytest.raises(InputError, match="'lm_head' received 2 tokens where input_ids hold 24"):
        model(**{**tiny.make_inputs(), "labels": None}, logits_to_keep=1)


def test_replicas_of_data_parallel_are_refused(tiny):
    model = tiny.make_lora()
    attach(model, ImodConfig())
    model.get_base_model()._is_replica = True
    with pytest.raises(InputError, match="DataParallel"):
        model(**tiny.make_inputs())
