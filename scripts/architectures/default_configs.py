"""A config for each model type that its classes take, and copies of it that are small enough to build often."""

import copy

from .configs import LAYER_COUNTS, plain, with_parts
from .library import CONFIG_MAPPING, MAJOR, PreTrainedConfig

LAYERS = 8 if MAJOR >= 5 else 5  # the most layers of a list that are built
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MOE = {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 2048, "indexer_compress_ratio": 16}
LACKS = {
    "autoformer": {"prediction_length": 24},
    "informer": {"prediction_length": 24},
    "time_series_transformer": {"prediction_length": 24},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", *["sparse"] * 63], "num_experts_per_tok": 6}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", *["sparse"] * 63], "num_experts_per_tok": 6},
    "diffusion_gemma": {"text_config": MOE},
    "diffusion_gemma_text": MOE,
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2},
    "esm": {"vocab_size": 33},
    "granite4_vision": {"deepstack_layer_map": [[0, 0], [1, 1]], "downsample_rate": "1/4"},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "nougat": {"encoder": {"model_type": "donut-swin"}, "decoder": {"model_type": "mbart"}},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "chameleon": {"vocabulary_map": {"<image>": 4, "IMGIMGA": 5}},
    "emu3": {"vocabulary_map": {"<image>": 4, "<|extra_0|>": 5}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}
"""What a model type's default config does not say and its classes need."""
if MAJOR < 5:
    MROPE = {"rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]}}
    LACKS |= {name: {"text_config": {"model_type": "llama", "vocab_size": 128260}} for name in ("idefics3", "smolvlm")}
    LACKS |= {name: {"use_pretrained_backbone": False} for name in ("detr", "conditional_detr", "dab-detr", "deformable_detr", "table-transformer")}
    LACKS["phi4_multimodal"] = {"vision_config": {}, "audio_config": {}}
    LACKS["qwen3_omni_moe"] = {
        "thinker_config": {"text_config": MROPE},
        "talker_config": {"text_config": {**MROPE, "shared_expert_intermediate_size": 1024}, "spatial_merge_size": 2},
    }
LACKS_AFTER = {  # the same, set when the config is made
    "aya_vision": {"vision_config.num_attention_heads": 16},
    "dbrx": {"attn_config.rope_theta": 500000.0},
    "hunyuan_vl": {"text_config.head_dim": 128},
    "perception_lm": {
        "vision_config.architecture": "vit_pe_core_large_patch14_336",
        "vision_config.model_args": {"embed_dim": 1024, "depth": 4, "img_size": [448, 448], "ref_feat_shape": [32, 32], "global_pool": ""},
    },
    "bridgetower": {"contrastive_hidden_size": 512},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 1024},
}


def default_config(model_type):
    """The config of a model type that says nothing, with what its classes need."""
    config = CONFIG_MAPPING[model_type](**LACKS.get(model_type, {}))
    for path, value in LACKS_AFTER.get(model_type, {}).items():
        *to, last = path.split(".")
        of = config
        for key in to:
            of = getattr(of, key, None)
        if of is not None:
            setattr(of, last, value)
    return config


def repaired(config):
    """A default config that no class takes, with what most classes need."""
    config = copy.deepcopy(config)
    lacks = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0}
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(heads, int):
        lacks["num_key_value_heads"] = heads
        if isinstance(hidden, int):
            lacks["head_dim"] = hidden // heads
    n = getattr(config, "num_hidden_layers", None)
    if isinstance(n, int):
        lacks["layer_types"] = ["full_attention"] * n
    for key, value in lacks.items():
        if getattr(config, key, None) is None:
            setattr(config, key, value)
    if vars(config).get("is_decoder") is False:
        config.is_decoder = True
    for of in with_parts(config) if MAJOR < 5 else ():
        if vars(of).get("rope_scaling", 0) is None:
            of.rope_scaling = {"rope_type": "default"}
    return config


def shrunk(config, most):
    """A config with at most `most` layers; lists as long as the number of layers follow."""
    config = copy.deepcopy(config)
    for of in (config, *(v for v in vars(config).values() if isinstance(v, PreTrainedConfig))) if MAJOR < 5 else ():
        # each expert is a module of its own before transformers 5
        for key, n in plain(of).items():
            if "experts" in key and isinstance(n, int) and not isinstance(n, bool) and n > 8:
                setattr(of, key, 8)
    for key in LAYER_COUNTS:
        n = vars(config).get(key)
        if isinstance(n, int) and n > most:
            setattr(config, key, most)
            for other, value in plain(config).items():
                if isinstance(value, (list, tuple)) and len(value) == n:
                    setattr(config, other, value[:most])
    return config


def evened(config):
    """A config whose images have an even number of patches along a side, also with patches twice as large, and whose heads divide the hidden size."""
    config = copy.deepcopy(config)
    for of in with_parts(config):
        hidden, heads, groups = (vars(of).get(key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
        if type(hidden) is int and type(heads) is int and heads > 0 and hidden % heads and type(vars(of).get("head_dim")) is not int:
            fits = (n for n in (64, 32, 16, 8, 4) if hidden % (2 * n) == 0 and n % (groups if type(groups) is int and groups > 0 else 1) == 0)
            of.num_attention_heads = next(fits, heads)
        image, patch = vars(of).get("image_size"), vars(of).get("patch_size")
        if type(image) is int and type(patch) is int and patch and image % (2 * patch):
            of.image_size = 16 * patch
    return config
