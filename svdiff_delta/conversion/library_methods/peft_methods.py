"""List PEFT's methods: the fields that each is built from, and those that no change of a weight can stand for (0.21.2).

A field that is not in the lists must be empty: a later PEFT may have put anything there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DROPPED: Final = frozenset(
    {
        # Bookkeeping, and names of code and models, which no layer needs.
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "progressbar", "runtime_offload_base_weight"),
        # Read from the keys: what was trained beside under its own name.
        *("modules_to_save", "bias"),
        # The backward pass, and how it was trained.
        *("lora_dropout", "rank_dropout", "module_dropout", "boft_dropout", "deft_dropout", "frod_dropout"),
        *("gralora_dropout", "hira_dropout", "miss_dropout", "psoft_dropout", "pvera_dropout", "randlora_dropout"),
        *("tinylora_dropout", "unilora_dropout", "vblora_dropout", "vera_dropout", "rank_dropout_scale"),
        *("megatron_core", "velora_config", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
        *("qalora_group_size", "ensure_weight_tying", "orth_reg_weight", "beta1", "beta2", "deltaT", "tinit", "tfinal"),
    }
)
"""Fields that are not passed on."""

LAYERS: Final = frozenset({"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"})
"""Fields that say which layers: where each layer has keys of its own, those do."""

_PATTERNS: Final = ("rank_pattern", "alpha_pattern", "init_weights", "r")
_LORA: Final = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "fan_in_fan_out")

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "ADALORA": (*_LORA, "target_r", "init_r", "total_step"),
    "ADAMSS": (
        "r",
        "num_subspaces",
        "subspace_rank",
        "init_weights",
        "use_dynamic_rank",
        "svd_threshold",
        "random_seed",
    ),
    "BOFT": ("boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "fan_in_fan_out", "init_weights"),
    "C3A": ("block_size", "block_size_pattern", "init_weights"),
    "DEFT": ("r", "decomposition_method", "init_scale", "alpha", "para", "fan_in_fan_out", "init_weights"),
    "DELORA": ("r", "delora_lambda", "init_weights", "rank_pattern", "lambda_pattern"),
    "FOURIERFT": (
        *("n_frequency", "scaling", "random_loc_seed", "fan_in_fan_out", "n_frequency_pattern", "init_weights"),
    ),
    "FROD": (
        *("projection_prng_key", "save_projection", "fan_in_fan_out", "init_weights", "sparse_rate"),
        "regularization_alpha",
    ),
    "GLORA": ("r", "config_A_B", "config_C", "config_D_E", "init_weights"),
    "GRALORA": ("r", "hybrid_r", "alpha", "gralora_k", "fan_in_fan_out", "init_weights"),
    "HIRA": ("r", "fan_in_fan_out", "init_weights", "rank_pattern"),
    "HRA": ("r", "apply_GS", "init_weights"),
    "IA3": ("feedforward_modules", "fan_in_fan_out", "init_ia3_weights"),
    "LN_TUNING": (),
    "LOHA": (*_PATTERNS, "alpha", "use_effective_conv2d"),
    "LOKR": (*_PATTERNS, "alpha", "use_effective_conv2d", "decompose_both", "decompose_factor"),
    "LORA": _LORA,
    "MISS": ("r", "mini_r", "init_weights"),
    "OFT": (
        *("r", "oft_block_size", "fan_in_fan_out", "init_weights", "coft", "eps", "block_share"),
        *("use_cayley_neumann", "num_cayley_neumann_terms"),
    ),
    "OSF": ("effective_rank", "rank_pattern", "init_weights", "target_svd_config"),
    "PEANUT": ("r", "depth", "act_fn", "scaling", "init_weights"),
    "PSOFT": (
        *("r", "psoft_alpha", "fan_in_fan_out", "ab_svd_init", "psoft_svd", "psoft_svd_lowrank_niter", "random_seed"),
        *("psoft_orth", "psoft_mag_b", "psoft_mag_a", "use_cayley_neumann", "num_cayley_neumann_terms"),
        *("cayley_neumann_eps", "init_weights"),
    ),
    "PVERA": (
        *("r", "projection_prng_key", "save_projection", "d_initial", "fan_in_fan_out", "init_weights"),
        "generator_seed",
    ),
    "RANDLORA": (
        *("r", "projection_prng_key", "save_projection", "sparse", "very_sparse", "randlora_alpha", "init_weights"),
        "fan_in_fan_out",
    ),
    "ROAD": ("variant", "group_size", "init_weights"),
    "SHIRA": ("r", "mask_type", "random_seed", "fan_in_fan_out", "init_weights"),
    "SUPERTUNING": ("sparsity", "select_top", "r", "lora_alpha", "init_weights", "save_precomputed_indices"),
    "TINYLORA": (
        *("r", "u", "weight_tying", "projection_seed", "save_projection", "init_v_bound", "fan_in_fan_out"),
        "init_weights",
    ),
    "TRAINABLE_TOKENS": ("token_indices", "init_weights"),
    "UNILORA": (
        "r",
        "proj_seed",
        "theta_d_length",
        "fan_in_fan_out",
        "init_theta_d_bound",
        "init_weights",
        "save_indices",
    ),
    "VBLORA": (
        *("r", "num_vectors", "vector_length", "topk", "save_only_topk_weights", "fan_in_fan_out"),
        *("init_vector_bank_bound", "init_logits_std"),
    ),
    "VERA": ("r", "projection_prng_key", "save_projection", "d_initial", "fan_in_fan_out", "init_weights"),
    "WAVEFT": (
        *("n_frequency", "scaling", "wavelet_family", "use_idwt", "random_loc_seed", "fan_in_fan_out"),
        *("n_frequency_pattern", "proportional_parameters", "init_weights"),
    ),
}
"""The fields that a layer of each method is built from."""

REFUSED_FIELDS: Final[Mapping[str, str]] = {
    "sample_at_inference": "the factors are sampled anew at each run",
    "use_asa": "subspaces are switched off while it trains, and the file does not say which",
}
"""Fields that change what the tensors mean, and how."""

NO_WEIGHT: Final[Mapping[str, str]] = {
    "ADAPTION_PROMPT": "it adds trained tokens to what the attention layers see",
    "BEFT": "it changes biases alone",
    "CARTRIDGE": "it adds trained keys and values to what the attention layers see",
    "CPT": "it adds trained tokens to the prompt",
    "LILY": "what its layers add depends on the input, by which its factors are mixed",
    "MULTITASK_PROMPT_TUNING": "it adds trained tokens to the prompt",
    "POLY": "what its layers add depends on the task, by which its factors are mixed",
    "PREFIX_TUNING": "it adds trained keys and values to what the attention layers see",
    "PROMPT_TUNING": "it adds trained tokens to the prompt",
    "P_TUNING": "it adds trained tokens to the prompt",
    "SHADOW": "it runs a second, smaller model beside the base",
    "XLORA": "what its layers add depends on the input, by which several adapters are mixed",
}
"""Methods that change no weight, and what they do."""

DECOMPOSED: Final[Mapping[str, str]] = {
    "ADAMSS": "the subspaces of the base's weight",
    "FROD": "a joint decomposition of the base's weights",
    "OSF": "the largest singular values of the base's weight, and their vectors",
    "PSOFT": "the largest singular values of the base's weight, and their vectors",
}
"""Methods whose files lack what PEFT takes out of the base anew at each load."""

TAKEN_OUT: Final[Mapping[str, str]] = {
    "pissa": "the largest singular values of the base's weight, and their vectors",
    "olora": "a QR decomposition of the base's weight",
}
"""Initializations of a LoRA by which PEFT takes something out of the base anew at each load, by how they begin."""
