"""Autoencoders and vocoders of diffusers."""

from __future__ import annotations

from typing import Any, Final

import torch

from .member import Member, narrow, of, ones, without, x

PHOTO: Final = x(1, 3, 16, 16)
MOVIE: Final = x(1, 3, 5, 16, 16)
KL: Final[dict[str, Any]] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
HUNYUAN: Final[dict[str, Any]] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
}
WAN: Final[dict[str, Any]] = {
    "z_dim": 4,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}

AUTOENCODERS: Final[dict[str, Member]] = {
    "AsymmetricAutoencoderKL": of(
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "down_block_out_channels": (8, 8),
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "up_block_out_channels": (8, 8),
            "norm_num_groups": 4,
        },
        sample=PHOTO,
        mask=torch.ones(1, 1, 16, 16),
    ),
    "AutoencoderDC": of(
        {
            "latent_channels": 4,
            "attention_head_dim": 4,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
        },
        sample=PHOTO,
    ),
    "AutoencoderKL": of(KL, sample=PHOTO),
    "AutoencoderKLCogVideoX": of(
        {
            "down_block_types": ("CogVideoXDownBlock3D",) * 2,
            "up_block_types": ("CogVideoXUpBlock3D",) * 2,
            "block_out_channels": (8, 8),
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "temporal_compression_ratio": 2,
            "sample_height": 16,
            "sample_width": 16,
        },
        sample=MOVIE,
    ),
    "AutoencoderKLCosmos": of(
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (8, 8),
            "decode_block_out_channels": (8, 8),
            "attention_resolutions": (8,),
            "resolution": 16,
            "num_layers": 1,
            "patch_size": 2,
            "spatial_compression_ratio": 4,
            "temporal_compression_ratio": 4,
            "latents_mean": None,
            "latents_std": None,
        },
        sample=MOVIE,
    ),
    "AutoencoderKLFlux2": of({**KL, "layers_per_block": 1}, sample=PHOTO),
    "AutoencoderKLHunyuanImage": of({**HUNYUAN, "spatial_compression_ratio": 2, "sample_size": 16}, sample=PHOTO),
    "AutoencoderKLHunyuanImageRefiner": of(
        {**HUNYUAN, "spatial_compression_ratio": 2, "temporal_compression_ratio": 1}, sample=MOVIE
    ),
    "AutoencoderKLHunyuanVideo": of(
        {
            **HUNYUAN,
            "block_out_channels": (8, 8, 8, 8),
            "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
            "norm_num_groups": 4,
        },
        sample=MOVIE,
    ),
    "AutoencoderKLHunyuanVideo15": of(
        {**HUNYUAN, "spatial_compression_ratio": 2, "temporal_compression_ratio": 1}, sample=MOVIE
    ),
    "AutoencoderKLKVAE": of(
        {
            "channels": 32,
            "num_enc_blocks": 1,
            "num_dec_blocks": 1,
            "z_channels": 4,
            "ch_mult": (1, 1),
            "sample_size": 16,
        },
        sample=PHOTO,
    ),
    "AutoencoderKLKVAEAudio": of(
        {
            "encoder_dim": 4,
            "encoder_rates": [2, 2],
            "latent_dim": 16,
            "codebook_dim": 4,
            "decoder_dim": 16,
            "decoder_rates": [2, 2],
            "attn_num_heads": 2,
        },
        sample=x(1, 1, 32),
    ),
    "AutoencoderKLKVAEVideo": of(
        {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 4, "temporal_compress_times": 2}, sample=MOVIE
    ),
    "AutoencoderKLLTX2Audio": of(
        {
            "base_channels": 8,
            "ch_mult": (1, 1),
            "num_res_blocks": 1,
            "resolution": 16,
            "latent_channels": 4,
            "mel_bins": 16,
            "mid_block_add_attention": True,
        },
        sample=x(1, 2, 16, 16),
    ),
    "AutoencoderKLLTX2Video": of(
        {
            "latent_channels": 4,
            "block_out_channels": (8, 8),
            "down_block_types": ("LTX2VideoDownBlock3D",) * 2,
            "decoder_block_out_channels": (8, 8),
            "layers_per_block": (1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1),
            "spatio_temporal_scaling": (True, False),
            "decoder_spatio_temporal_scaling": (True, False),
            "decoder_inject_noise": (False, False, False),
            "downsample_type": ("spatiotemporal", "conv"),
            "upsample_type": ("spatiotemporal", "spatiotemporal"),
            "upsample_residual": (True, False),
            "upsample_factor": (1, 1),
            "timestep_conditioning": False,
            "patch_size": 2,
        },
        sample=MOVIE,
    ),
    "AutoencoderKLLTXVideo": narrow(
        of(
            {
                "latent_channels": 4,
                "block_out_channels": (8, 8),
                "down_block_types": ("LTXVideoDownBlock3D",) * 2,
                "decoder_block_out_channels": (8, 8),
                "layers_per_block": (1, 1, 1),
                "decoder_layers_per_block": (1, 1, 1),
                "spatio_temporal_scaling": (True, False),
                "decoder_spatio_temporal_scaling": (True, False),
                "decoder_inject_noise": (True, False, False),
                "downsample_type": ("conv", "conv"),
                "upsample_residual": (False, False),
                "upsample_factor": (1, 1),
                "timestep_conditioning": True,
                "patch_size": 2,
            },
            sample=MOVIE,
            temb=torch.tensor([0.05]),
        )
    ),
    "AutoencoderKLMagvit": of(
        {
            "latent_channels": 4,
            "block_out_channels": [8, 8],
            "down_block_types": ["SpatialDownBlock3D", "SpatialTemporalDownBlock3D"],
            "up_block_types": ["SpatialUpBlock3D", "SpatialTemporalUpBlock3D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        sample=MOVIE,
    ),
    "AutoencoderKLMiniMaxH3": of(
        {
            "latent_channels": 4,
            "block_out_channels": (8, 8),
            "layers_per_block": 1,
            "spatial_downsample_factors": (2, 1),
            "temporal_downsample_factors": (2, 1),
            "norm_num_groups": 4,
            "decoder_num_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_attention_head_dim": 16,
            "decoder_num_register_tokens": 1,
            "decoder_ffn_mult": 1,
            "clip_length": 5,
            "token_drop": 0,
            "latents_mean": (0.0,) * 4,
            "latents_std": (1.0,) * 4,
        },
        sample=MOVIE,
    ),
    "AutoencoderKLMiniMaxH3Audio": of(
        {
            "encoder_dim": 4,
            "encoder_rates": (2, 2),
            "latent_dim": 16,
            "latent_channels": 4,
            "num_attention_heads": 2,
            "decoder_dim": 16,
            "decoder_rates": (2, 2),
            "decoder_kernel_sizes": (4, 4),
            "resblock_kernel_sizes": (3,),
            "resblock_dilation_sizes": ((1, 3),),
        },
        sample=x(1, 1, 32),
    ),
    "AutoencoderKLMochi": of(
        {
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "latent_channels": 4,
            "layers_per_block": (1, 1, 1, 1, 1),
            "temporal_expansions": (1, 2, 3),
            "latents_mean": None,
            "latents_std": None,
        },
        sample=x(1, 3, 7, 16, 16),
    ),
    "AutoencoderKLQwenImage": of({**WAN, "base_dim": 4, "temperal_downsample": [True]}, sample=MOVIE),
    "AutoencoderKLQwenImage21": without(
        {"*.time_conv.*": "it takes single pictures"},
        of(
            {
                **WAN,
                "base_dim": 4,
                "decoder_base_dim": 4,
                "temperal_downsample": [True],
                "scale_factor_temporal": 2,
                "scale_factor_spatial": 2,
            },
            sample=x(1, 4, 1, 16, 16),
        ),
    ),
    "AutoencoderKLTemporalDecoder": without(
        {"decoder.mid_block.attentions.*": "the class builds it and its forward never calls it"},
        of(
            {
                "block_out_channels": (32, 32),
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "sample_size": 16,
            },
            sample=x(2, 3, 16, 16),
            num_frames=2,
        ),
    ),
    "AutoencoderKLWan": of({**WAN, "base_dim": 4, "temperal_downsample": [True]}, sample=MOVIE),
    "AutoencoderKLWan of Wan 2.2": of(
        {
            **WAN,
            "base_dim": 4,
            "decoder_base_dim": 4,
            "temperal_downsample": [True],
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
        },
        sample=MOVIE,
    ),
    "AutoencoderOobleck": of(
        {
            "encoder_hidden_size": 8,
            "downsampling_ratios": [2, 2],
            "channel_multiples": [1, 2],
            "decoder_channels": 4,
            "decoder_input_channels": 4,
        },
        sample=x(1, 2, 32),
    ),
    "AutoencoderRAE": of(
        {
            "encoder_hidden_size": 64,
            "encoder_num_hidden_layers": 1,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 16,
            "patch_size": 4,
            "encoder_input_size": 28,
            "image_size": 8,
        },
        sample=x(1, 3, 28, 28),
    ),
    "AutoencoderSAME": of(
        {
            "patch_size": 4,
            "encoder_channels": 8,
            "encoder_c_mults": (2,),
            "encoder_strides": (2,),
            "encoder_transformer_depths": (1,),
            "latent_dim": 4,
            "dim_heads": 8,
            "ff_mult": 1,
        },
        sample=x(1, 2, 32),
    ),
    "AutoencoderTiny": narrow(
        of(
            {
                "encoder_block_out_channels": (8, 8),
                "decoder_block_out_channels": (8, 8),
                "num_encoder_blocks": (1, 1),
                "num_decoder_blocks": (1, 1),
            },
            sample=PHOTO,
        )
    ),
    "AutoencoderVidTok": of(
        {"ch": 32, "ch_mult": [1, 1, 1], "z_channels": 4, "num_res_blocks": 1, "is_causal": True},
        sample=x(1, 3, 5, 16, 16),
        sample_posterior=False,
    ),
    "ConsistencyDecoderVAE": narrow(
        of(
            {
                "encoder_block_out_channels": (8, 8),
                "encoder_down_block_types": ("DownEncoderBlock2D",) * 2,
                "encoder_layers_per_block": 1,
                "encoder_norm_num_groups": 4,
                "decoder_block_out_channels": (8, 8),
                "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
                "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
                "decoder_layers_per_block": 1,
                "decoder_norm_num_groups": 4,
            },
            sample=PHOTO,
        )
    ),
    "Cosmos3AVAEAudioTokenizer": of(
        {
            "vocoder_input_dim": 4,
            "dec_dim": 4,
            "dec_c_mults": (1, 2),
            "dec_strides": (2, 2),
            "enc_dim": 4,
            "enc_intermediate_dim": 8,
            "enc_num_layers": 1,
            "enc_num_blocks": 1,
            "enc_n_fft": 8,
            "enc_hop_length": 2,
            "enc_latent_dim": 8,
            "enc_c_mults": (1,),
            "enc_strides": (2,),
        },
        sample=x(1, 2, 64),
    ),
    "Kandinsky6SRVAE": of(
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8),
            "layers_per_block": 1,
            "temporal_compression_ratio": 2,
        },
        sample=MOVIE,
    ),
    "LongCatAudioDiTVae": of(
        {
            "channels": 4,
            "c_mults": [1, 2],
            "strides": [2, 2],
            "latent_dim": 4,
            "encoder_latent_dim": 8,
            "downsampling_ratio": 4,
        },
        sample=x(1, 1, 32),
    ),
    "MMAudioVAE": narrow(
        of(
            {
                "mel_bins": 8,
                "latent_channels": 4,
                "hidden_channels": 16,
                "channel_multipliers": (1, 2),
                "layers_per_block": 1,
                "n_fft": 64,
                "hop_length": 16,
            },
            sample=x(1, 256),
        )
    ),
    "MMAudioVocoder": of(
        {
            "num_mels": 8,
            "upsample_initial_channel": 16,
            "upsample_rates": (2, 2),
            "upsample_kernel_sizes": (4, 4),
            "resblock_kernel_sizes": (3,),
            "resblock_dilation_sizes": ((1, 3, 5),),
        },
        mel=x(1, 8, 8),
    ),
    "MiniMaxMusic3Vocoder": of(
        {"latent_channels": 4, "decoder_input_dim": 8, "decoder_hidden_dim": 16, "upsampling_ratios": (2, 2)},
        latents=x(1, 4, 8),
    ),
    "RFD4ProteinaAutoencoder": without(
        {"encoder.*": "its forward decodes only"},
        of(
            {
                "atom37_mask": [[True] * 37] * 8,
                "allowed_residue_types": [[True] * 8] * 7,
                "latent_dim": 4,
                "n_residue_types": 8,
                "nlayers": 1,
                "token_dim": 16,
                "nheads": 2,
                "dim_cond": 8,
                "pair_repr_dim": 8,
                "token_type_emb_dim": 4,
                "decoder_feats_seq": ("ca_coors_nm", "z_latent_seq", "token_type"),
            },
            z_latent=x(1, 6, 4),
            ca_coors_nm=x(1, 6, 3, seed=1),
            padding_mask=ones(1, 6),
            token_type=torch.zeros(1, 6, dtype=torch.long),
            conditioning={"is_in_context_conditioning": ~ones(1, 6), "supports_local_latent": ones(1, 6)},
        ),
    ),
    "VQModel": of(
        {**{key: KL[key] for key in KL}, "num_vq_embeddings": 8, "vq_embed_dim": 4},
        sample=PHOTO,
    ),
}
