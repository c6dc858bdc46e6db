"""The networks of the zoo: how each is made and run, and what the presets are to watch in it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

N = 12  # inputs


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        name: Its name here.
        package: The package that it comes from.
        make: Makes it.
        inputs: Makes its inputs.
        blocks: What ``"blocks"`` is to watch, see :func:`expand`; empty where nobody has written it down.
        stages: The same for ``"stages"``.
        forward: How it is run, where calling it will not do.
    """

    name: str
    package: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    blocks: str = ""
    stages: str = ""
    forward: Callable[[nn.Module, Any], Any] | None = None


# -- Inputs


def images(size: int, channels: int = 3, *more: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(N, channels, size, size, *more, generator=torch.Generator().manual_seed(1))


def rows(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *shape, generator=torch.Generator().manual_seed(1))


def tokens(length: int = 10, vocabulary: int = 40, low: int = 5) -> Callable[[], Tensor]:
    return lambda: torch.randint(low, vocabulary, (N, length), generator=torch.Generator().manual_seed(1))


def named(**makers: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: make() for name, make in makers.items()}


def several(*makers: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(make() for make in makers)


# -- Networks


def _use(module: str, name: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Import late: what is not installed, or not asked for, costs nothing."""

    def make() -> Any:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found(*args, **kwargs)

    return make


def _torchvision() -> Iterator[Network]:
    def net(name: str, size: int, blocks: str = "", stages: str = "", **kwargs: Any) -> Network:
        options = {"num_classes": 5} | kwargs
        return Network(name, "torchvision", _use("torchvision.models", name, **options), images(size), blocks, stages)

    residual = "conv1 layer{1..4}.{0..1} fc"
    yield net("resnet18", 32, residual, "conv1 layer{1..4} fc")
    yield net("resnet50", 32, "conv1 layer1.{0..2} layer2.{0..3} layer3.{0..5} layer4.{0..2} fc")
    yield net("wide_resnet50_2", 32)
    yield net("resnext50_32x4d", 32)
    yield net("vgg11", 32, "features.{0,3,6,8,11,13,16,18} classifier.{0,3,6}", "features.{2,5,10,15,20} classifier")
    yield net("alexnet", 64, "features.{0,3,6,8,10} classifier.{1,4,6}", "features.{2,5,12} classifier")
    yield net("squeezenet1_1", 48, "features.{0,3,4,6,7,9,10,11,12} classifier.1")
    yield net(
        "densenet121",
        32,
        "features.conv0 features.denseblock1.denselayer{1..6} features.transition1 features.denseblock2.denselayer{1..12} "
        "features.transition2 features.denseblock3.denselayer{1..24} features.transition3 "
        "features.denseblock4.denselayer{1..16} classifier",
        "features.conv0 features.denseblock1 features.transition1 features.denseblock2 features.transition2 "
        "features.denseblock3 features.transition3 features.denseblock4 classifier",
    )
    yield net(
        "googlenet",
        64,
        "conv{1..3} inception3{a,b} inception4{a,b,c,d,e} inception5{a,b} fc",
        "conv{1..3} inception3b inception4e inception5b fc",
        init_weights=False,
    )
    yield net("inception_v3", 96, init_weights=False)
    yield net("mobilenet_v2", 32, "features.{0..18} classifier.1")
    yield net("mobilenet_v3_small", 32, "features.{0..12} classifier.{0,3}")
    yield net("mobilenet_v3_large", 32, "features.{0..16} classifier.{0,3}")
    yield net("shufflenet_v2_x0_5", 64, "conv1.0 stage2.{0..3} stage3.{0..7} stage4.{0..3} conv5.0 fc")
    yield net("mnasnet0_5", 64)
    yield net(
        "efficientnet_b0",
        32,
        "features.0 features.1.0 features.{2,3}.{0..1} features.{4,5}.{0..2} features.6.{0..3} features.7.0 features.8 "
        "classifier.1",
        "features.{0..8} classifier",
    )
    yield net("efficientnet_v2_s", 32)
    yield net(
        "regnet_y_400mf",
        32,
        "stem trunk_output.block1.block1-0 trunk_output.block2.block2-{0..2} trunk_output.block3.block3-{0..5} "
        "trunk_output.block4.block4-{0..5} fc",
        "stem trunk_output.block{1..4} fc",
    )
    yield net(
        "convnext_tiny",
        32,
        "features.0 features.1.{0..2} features.2.1 features.3.{0..2} features.4.1 features.5.{0..8} features.6.1 "
        "features.7.{0..2} classifier.2",
        "features.{0..7} classifier",
    )
    yield net(
        "swin_t",
        64,
        "features.0.0 features.1.{0..1} features.2 features.3.{0..1} features.4 features.5.{0..5} features.6 "
        "features.7.{0..1} head",
        "features.{0..7} head",
    )
    yield net("swin_v2_t", 64)
    yield net(
        "vit_b_32",
        64,
        "conv_proj encoder.layers.encoder_layer_{0..11} heads.head",
        "conv_proj encoder.layers heads",
        image_size=64,
    )
    yield net(
        "MaxVit",
        64,
        "stem.{0,1} blocks.0.layers.0 blocks.1.layers.{0,1} classifier.{3,5}",
        "stem blocks.{0,1} classifier",
        input_size=(64, 64),
        stem_channels=8,
        partition_size=4,
        block_channels=[8, 16],
        block_layers=[1, 2],
        head_dim=4,
        stochastic_depth_prob=0.0,
    )
    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        yield Network(
            name,
            "torchvision",
            _use("torchvision.models.segmentation", name, weights=None, weights_backbone=None, num_classes=5),
            images(48),
        )
    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        yield Network(
            name,
            "torchvision",
            _use("torchvision.models.video", name, num_classes=5),
            images(4, 3, 16),
            "stem layer{1..4}.{0..1} fc" if name != "r2plus1d_18" else "",
        )
    for name in ("retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"):
        options = {"weights": None, "weights_backbone": None, "num_classes": 4}
        small = {"min_size": 64, "max_size": 64} if not name.startswith("ssd") else {}
        yield Network(
            name,
            "torchvision",
            _use("torchvision.models.detection", name, **options, **small),
            images(64),
            forward=lambda net, x: net(list(x)),
        )


def _timm() -> Iterator[Network]:
    def net(name: str, size: int = 64, blocks: str = "", stages: str = "", **kwargs: Any) -> Network:
        options = {"num_classes": 5} | kwargs
        return Network(name, "timm", _use("timm", "create_model", name, **options), images(size), blocks, stages)

    vit = {"img_size": 64}
    yield net("vit_tiny_patch16_224", 64, "patch_embed blocks.{0..11} head", "patch_embed blocks head", **vit)
    yield net("deit_tiny_distilled_patch16_224", 64, "patch_embed blocks.{0..11} head head_dist", **vit)
    yield net(
        "beit_base_patch16_224", 64, "patch_embed blocks.{0..3} head", "patch_embed blocks.3 head", depth=4, **vit
    )
    yield net("eva02_tiny_patch14_224", 56, "patch_embed blocks.{0..11} head", img_size=56)
    yield net("xcit_nano_12_p16_224", 64, "patch_embed blocks.{0..11} cls_attn_blocks.{0..1} head")
    yield net("cait_xxs24_224", 64, "patch_embed blocks.{0..23} blocks_token_only.{0..1} head", **vit)
    yield net(
        "convnext_atto",
        64,
        "stem.0 stages.0.blocks.{0..1} stages.1.downsample.1 stages.1.blocks.{0..1} stages.2.downsample.1 "
        "stages.2.blocks.{0..5} stages.3.downsample.1 stages.3.blocks.{0..1} head",
        "stem stages.{0..3} head",
    )
    yield net("convnextv2_atto", 64, "", "stem stages.{0..3} head")
    yield net(
        "swin_tiny_patch4_window7_224",
        56,
        "patch_embed layers.0.blocks.{0..1} layers.1.downsample layers.1.blocks.{0..1} layers.2.downsample "
        "layers.2.blocks.{0..5} layers.3.downsample layers.3.blocks.{0..1} head",
        "patch_embed layers.{0..3} head",
        img_size=56,
    )
    yield net("swinv2_tiny_window8_256", 64, img_size=64)
    yield net(
        "poolformer_s12",
        64,
        "stem stages.0.blocks.{0..1} stages.1.downsample stages.1.blocks.{0..1} stages.2.downsample "
        "stages.2.blocks.{0..5} stages.3.downsample stages.3.blocks.{0..1} head.fc",
        "stem stages.{0..3} head.fc",
    )
    yield net("caformer_s18", 64)
    yield net(
        "levit_128s",
        224,
        "stem stages.0.blocks.{0..1} stages.1.downsample stages.1.blocks.{0..2} stages.2.downsample "
        "stages.2.blocks.{0..3} head head_dist",
        "stem stages.{0..2} head head_dist",
    )
    yield net(
        "fastvit_t8",
        64,
        "stem.{0..2} stages.0.blocks.{0..1} stages.1.downsample stages.1.blocks.{0..1} stages.2.downsample "
        "stages.2.blocks.{0..3} stages.3.downsample stages.3.blocks.{0..1} final_conv head",
    )
    yield net("regnety_002", 64, "stem s1.b1 s2.b1 s3.b{1..4} s4.b{1..7} head", "stem s{1..4} head")
    yield net(
        "mobilenetv4_conv_small",
        64,
        "conv_stem blocks.{0,1}.{0..1} blocks.{2,3}.{0..5} blocks.4.0 conv_head classifier",
        "conv_stem blocks.{0..4} conv_head classifier",
    )
    yield net(
        "mobilevit_xxs",
        64,
        "stem stages.0.0 stages.1.{0..2} stages.{2..4}.{0,1} final_conv head",
        "stem stages.{0..4} final_conv head",
    )
    yield net("mobilevitv2_050", 64)
    yield net(
        "efficientnet_lite0",
        64,
        "conv_stem blocks.0.0 blocks.1.{0..1} blocks.2.{0..1} blocks.3.{0..2} blocks.4.{0..2} blocks.5.{0..3} "
        "blocks.6.0 conv_head classifier",
        "conv_stem blocks.{0..6} conv_head classifier",
    )
    yield net("mobilenetv3_small_050", 64)
    yield net("mnasnet_small", 64)
    yield net(
        "ghostnet_050",
        64,
        "conv_stem blocks.{0..5}.0 blocks.6.{0..4} blocks.7.0 blocks.8.{0..3} blocks.9.0 conv_head classifier",
    )
    yield net("cspresnet50", 64)
    yield net("cspdarknet53", 64)
    yield net("darknet53", 64)
    yield net("resnet10t", 64, "conv1.{0,3,6} layer{1..4}.0 fc")
    yield net("seresnet18", 64)
    yield net("resnest14d", 64)
    yield net("res2net50_26w_4s", 64)
    yield net("dla34", 64)
    yield net("dpn48b", 64)
    yield net("hrnet_w18_small", 64)
    yield net("nf_resnet26", 64)
    yield net(
        "resnetv2_50",
        64,
        "stem.conv stages.0.blocks.{0..2} stages.1.blocks.{0..3} stages.2.blocks.{0..5} stages.3.blocks.{0..2} head",
        "stem stages.{0..3} head",
    )
    yield net("nfnet_l0", 64)
    yield net("repvgg_a0", 64)
    yield net("selecsls42", 64)
    yield net("tresnet_m", 64)
    yield net("vovnet39a", 64)
    yield net("xception41", 64)
    yield net("inception_v4", 96)
    yield net("inception_resnet_v2", 96)
    yield net("nasnetalarge", 96)
    yield net("densenet121", 64)
    yield net("vgg11_bn", 64)
    yield net("mixer_s32_224", 64, "stem blocks.{0..7} head", "stem blocks head", **vit)
    yield net("gmlp_s16_224", 64, "stem blocks.{0..29} head", **vit)
    yield net("resmlp_12_224", 64, "stem blocks.{0..11} head", **vit)
    yield net("pit_ti_224", 64, img_size=64)
    yield net("pvt_v2_b0", 64)
    yield net("twins_svt_small", 64)
    yield net("tnt_s_legacy_patch16_224", 64, img_size=64)
    yield net("visformer_tiny", 224)
    yield net("coat_tiny", 64, img_size=64)
    yield net("convit_tiny", 64, "patch_embed blocks.{0..11} head", img_size=64)
    yield net("crossvit_tiny_240", 240)
    yield net("maxvit_rmlp_pico_rw_256", 64, img_size=64)
    yield net("coatnet_pico_rw_224", 64, img_size=64)
    yield net("edgenext_xx_small", 64)
    yield net("efficientformer_l1", 224)
    yield net("efficientvit_b0", 64)
    yield net("efficientvit_m0", 224)
    yield net("focalnet_tiny_srf", 64)
    yield net("gcvit_xxtiny", 64, img_size=64)
    yield net("davit_tiny", 64)
    yield net(
        "hiera_tiny_224",
        224,
        "patch_embed blocks.{0..11} head",
        "patch_embed blocks.0 blocks.2 blocks.9 blocks.11 head",
    )
    yield net("inception_next_atto", 64)
    yield net("lcnet_050", 64)
    yield net("mambaout_femto", 64)
    yield net("mvitv2_tiny", 224)
    yield net("nextvit_small", 64)
    yield net("rdnet_tiny", 64)
    yield net("repghostnet_050", 64)
    yield net("repvit_m0_9", 64)
    yield net("sequencer2d_s", 64, img_size=64)
    yield net("starnet_s050", 64)
    yield net("tiny_vit_5m_224", 224)
    yield net("volo_d1_224", 64, img_size=64)
    yield net("ese_vovnet19b_slim", 64)
    yield net("hardcorenas_a", 64)
    yield net("lambda_resnet26t", 256)
    yield net("botnet26t_256", 256)
    yield net("halonet26t", 256)


def _transformers() -> Iterator[Network]:
    small = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "num_labels": 3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }

    def net(
        name: str,
        auto: str,
        inputs: Callable[[], Any],
        blocks: str = "",
        stages: str = "",
        forward: Any = None,
        **options: Any,
    ) -> Network:
        def make() -> nn.Module:
            config = importlib.import_module("transformers").AutoConfig.for_model(name, **options)
            made: nn.Module = getattr(importlib.import_module("transformers"), auto).from_config(config)
            return made

        return Network(f"{name}", "transformers", make, inputs, blocks, stages, forward)

    text = named(input_ids=tokens())
    classify, mlm, lm = "AutoModelForSequenceClassification", "AutoModelForMaskedLM", "AutoModelForCausalLM"
    yield net(
        "bert",
        classify,
        text,
        "bert.embeddings bert.encoder.layer.{0..2} bert.pooler classifier",
        "bert.embeddings bert.encoder bert.pooler classifier",
        **small,
    )
    yield net("roberta", classify, text, "roberta.embeddings roberta.encoder.layer.{0..2} classifier", **small)
    yield net(
        "electra",
        classify,
        text,
        "electra.embeddings electra.encoder.layer.{0..2} classifier",
        embedding_size=16,
        **small,
    )
    yield net(
        "distilbert",
        classify,
        text,
        "distilbert.embeddings distilbert.transformer.layer.{0..2} pre_classifier classifier",
        vocab_size=40,
        dim=16,
        n_layers=3,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=32,
    )
    yield net(
        "albert",
        classify,
        text,
        "albert.embeddings albert.encoder.embedding_hidden_mapping_in "
        "albert.encoder.albert_layer_groups.0.call{1..3} albert.pooler classifier",
        embedding_size=8,
        num_hidden_groups=1,
        **small,
    )
    yield net(
        "deberta-v2", classify, text, "deberta.embeddings deberta.encoder.layer.{0..2} pooler classifier", **small
    )
    yield net("mpnet", mlm, text, **small)
    yield net("modernbert", classify, text, "model.embeddings model.layers.{0..2} head classifier", **small)
    yield net(
        "funnel", classify, text, vocab_size=40, d_model=16, n_head=2, d_head=8, d_inner=24, block_sizes=[1, 1, 1]
    )
    yield net("xlm", classify, text, vocab_size=40, emb_dim=16, n_layers=3, n_heads=2, n_words=40)
    yield net("big_bird", classify, text, attention_type="original_full", **small)
    yield net(
        "nystromformer",
        classify,
        named(input_ids=tokens(64)),
        segment_means_seq_len=64,
        num_landmarks=8,
        **(small | {"max_position_embeddings": 64}),
    )
    yield net("convbert", classify, text, embedding_size=16, **small)
    yield net(
        "squeezebert",
        classify,
        text,
        embedding_size=16,
        **(
            small
            | {
                "q_groups": 1,
                "k_groups": 1,
                "v_groups": 1,
                "intermediate_groups": 1,
                "post_attention_groups": 1,
                "output_groups": 1,
            }
        ),
    )
    yield net(
        "gpt2",
        lm,
        text,
        "transformer.wte transformer.h.{0..2} lm_head",
        "transformer.wte transformer.h.2 lm_head",
        vocab_size=40,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield net(
        "gpt_neo",
        lm,
        text,
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield net("gpt_neox", lm, text, "gpt_neox.embed_in gpt_neox.layers.{0..2} lm_head", **small)
    yield net("gptj", lm, text, vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, rotary_dim=4)
    yield net(
        "opt",
        lm,
        text,
        "model.decoder.embed_tokens model.decoder.layers.{0..2} lm_head",
        ffn_dim=24,
        word_embed_proj_dim=16,
        **small,
    )
    yield net("bloom", lm, text, vocab_size=40, hidden_size=16, n_layer=2, n_head=2)
    yield net(
        "llama",
        lm,
        text,
        "model.embed_tokens model.layers.{0..2} lm_head",
        "model.embed_tokens model.layers.2 lm_head",
        num_key_value_heads=2,
        **small,
    )
    yield net("mistral", lm, text, "model.embed_tokens model.layers.{0..2} lm_head", num_key_value_heads=2, **small)
    yield net("qwen2", lm, text, "model.embed_tokens model.layers.{0..2} lm_head", num_key_value_heads=2, **small)
    yield net(
        "gemma", lm, text, "model.embed_tokens model.layers.{0..2} lm_head", num_key_value_heads=2, head_dim=8, **small
    )
    yield net(
        "mixtral",
        lm,
        text,
        "model.embed_tokens model.layers.{0..2} lm_head",
        num_key_value_heads=2,
        num_local_experts=2,
        **small,
    )
    yield net("phi", lm, text, num_key_value_heads=2, **small)
    yield net("falcon", lm, text, **small)
    yield net(
        "mamba",
        lm,
        text,
        "backbone.embeddings backbone.layers.{0..2} lm_head",
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=3,
        state_size=4,
    )
    yield net(
        "mamba2",
        lm,
        text,
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        state_size=4,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        chunk_size=4,
    )
    yield net("rwkv", lm, text, vocab_size=40, hidden_size=16, num_hidden_layers=3, attention_hidden_size=16)
    both = named(input_ids=tokens(), decoder_input_ids=tokens(8))
    yield net(
        "t5",
        "AutoModelForSeq2SeqLM",
        both,
        "encoder.embed_tokens encoder.block.{0..2} decoder.embed_tokens decoder.block.{0..2} lm_head",
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=3,
        num_heads=2,
    )
    yield net(
        "bart",
        "AutoModelForSeq2SeqLM",
        both,
        "model.encoder.embed_tokens model.encoder.layers.{0..1} model.decoder.embed_tokens "
        "model.decoder.layers.{0..1} lm_head",
        vocab_size=40,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
    )
    yield net(
        "marian",
        "AutoModelForSeq2SeqLM",
        both,
        vocab_size=40,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    yield net(
        "longt5", "AutoModelForSeq2SeqLM", both, vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 32,
        "patch_size": 8,
        "num_labels": 3,
    }
    image = "AutoModelForImageClassification"
    yield net("vit", image, images(32), "vit.embeddings vit.layers.{0..2} classifier", **vision)
    yield net(
        "beit",
        image,
        images(32),
        "beit.embeddings beit.layers.{0..2} classifier",
        "beit.embeddings beit.layers.2 classifier",
        **vision,
    )
    yield net("dinov2", image, images(32), **vision)
    yield net(
        "swin",
        image,
        images(32),
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 2],
        num_heads=[2, 2],
        window_size=4,
        num_labels=3,
    )
    yield net("convnext", image, images(32), hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1], num_labels=3)
    yield net(
        "resnet",
        image,
        images(32),
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        layer_type="basic",
        num_labels=3,
    )
    yield net(
        "regnet", image, images(32), embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4, num_labels=3
    )
    yield net(
        "segformer",
        "AutoModelForSemanticSegmentation",
        images(32),
        "segformer.stages.0.patch_embeddings segformer.stages.0.blocks.0 segformer.stages.1.patch_embeddings "
        "segformer.stages.1.blocks.{0..1} decode_head",
        "segformer.stages.{0..1} decode_head",
        depths=[1, 2],
        num_encoder_blocks=2,
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=3,
    )
    yield net("mobilevit", image, images(32), num_labels=3, image_size=32)
    yield net("pvt_v2", image, images(32), num_labels=3)
    yield net(
        "bit", image, images(32), num_labels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_groups=4
    )
    yield net(
        "wav2vec2",
        "AutoModelForAudioClassification",
        rows(800),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8, 8],
        conv_kernel=[8, 4],
        conv_stride=[4, 4],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_labels=3,
    )
    yield net(
        "hubert",
        "AutoModelForAudioClassification",
        rows(800),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8, 8],
        conv_kernel=[8, 4],
        conv_stride=[4, 4],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_labels=3,
    )
    yield net(
        "audio-spectrogram-transformer",
        "AutoModelForAudioClassification",
        rows(32, 16),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_length=32,
        num_mel_bins=16,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        num_labels=3,
    )
    yield net(
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        named(input_features=rows(8, 40), decoder_input_ids=tokens(6)),
        vocab_size=40,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=20,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    clip = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    yield net(
        "clip",
        "AutoModel",
        named(input_ids=tokens(8), pixel_values=images(32)),
        text_config=clip
        | {"vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 39, "bos_token_id": 1, "pad_token_id": 0},
        vision_config=clip | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )


def _peft() -> Iterator[Network]:
    def adapted(config: str, **options: Any) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            peft, transformers = importlib.import_module("peft"), importlib.import_module("transformers")
            bert = transformers.BertForSequenceClassification(
                transformers.BertConfig(
                    vocab_size=40,
                    hidden_size=16,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    intermediate_size=24,
                    max_position_embeddings=32,
                    num_labels=3,
                )
            )
            made: nn.Module = peft.get_peft_model(bert, getattr(peft, config)(task_type="SEQ_CLS", **options))
            return made

        return make

    bert = (
        "base_model.model.bert.{embeddings} base_model.model.bert.encoder.layer.{0..2} base_model.model.bert.{pooler} "
    )
    bert += "base_model.model.{classifier}"
    text, every = named(input_ids=tokens()), ["query", "key", "value", "dense"]
    for config, options in (
        ("LoraConfig", {"target_modules": ["query", "value"]}),
        ("LoraConfig", {"target_modules": every, "use_dora": True}),
        ("LoHaConfig", {"target_modules": every}),
        ("IA3Config", {"target_modules": ["key", "value", "dense"], "feedforward_modules": ["dense"]}),
        ("OFTConfig", {"target_modules": ["query"], "oft_block_size": 4}),
    ):
        name = f"bert {config.removesuffix('Config')}{' dora' if 'use_dora' in options else ''}"
        yield Network(name, "peft", adapted(config, **options), text, bert)

    def lora_vit() -> nn.Module:
        peft, timm = importlib.import_module("peft"), importlib.import_module("timm")
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=5)
        made: nn.Module = peft.get_peft_model(vit, peft.LoraConfig(target_modules=["qkv", "proj", "fc1", "fc2"]))
        return made

    def lora_resnet() -> nn.Module:
        peft, vision = importlib.import_module("peft"), importlib.import_module("torchvision")
        net = vision.models.resnet18(num_classes=5)
        made: nn.Module = peft.get_peft_model(net, peft.LoraConfig(target_modules=r".*\.conv\d"))
        return made

    yield Network(
        "vit Lora",
        "peft",
        lora_vit,
        images(64),
        "base_model.model.patch_embed base_model.model.blocks.{0..3} base_model.model.head",
    )
    yield Network(
        "resnet18 Lora",
        "peft",
        lora_resnet,
        images(32),
        "base_model.model.conv1 base_model.model.layer{1..4}.{0..1} base_model.model.fc",
    )


def _diffusers() -> Iterator[Network]:
    def net(name: str, inputs: Callable[[], Any], blocks: str = "", stages: str = "", **options: Any) -> Network:
        return Network(name, "diffusers", _use("diffusers", name, **options), inputs, blocks, stages)

    noise, steps = images(16), tokens(1)
    timed = named(sample=noise, timestep=lambda: steps()[:, 0])
    unet = {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    yield net(
        "UNet2DModel",
        timed,
        "time_embedding conv_in down_blocks.{0..1} mid_block up_blocks.{0..1} conv_out",
        "time_embedding conv_in down_blocks.{0..1} mid_block up_blocks.{0..1} conv_out",
        **unet,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    yield net(
        "UNet2DConditionModel",
        named(sample=images(16, 4), timestep=lambda: steps()[:, 0], encoder_hidden_states=rows(5, 12)),
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **unet,
    )
    yield net(
        "DiTTransformer2DModel",
        named(hidden_states=images(8, 4), timestep=lambda: steps()[:, 0], class_labels=lambda: steps()[:, 0] % 7),
        "pos_embed transformer_blocks.{0..2} proj_out_{1..2}",
        "pos_embed transformer_blocks.2 proj_out_{1..2}",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        sample_size=8,
        norm_num_groups=4,
    )
    yield net(
        "AutoencoderKL",
        images(16),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    yield net(
        "VQModel",
        images(16),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    yield net(
        "PixArtTransformer2DModel",
        named(hidden_states=images(8, 4), timestep=lambda: steps()[:, 0], encoder_hidden_states=rows(5, 12)),
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=3,
        sample_size=8,
        caption_channels=12,
        cross_attention_dim=16,
        use_additional_conditions=False,
        norm_num_groups=4,
    )
    yield net(
        "UNet1DModel",
        named(sample=rows(14, 16), timestep=lambda: steps()[:, 0]),
        sample_size=16,
        block_out_channels=(8, 16),
        in_channels=14,
        out_channels=14,
        time_embedding_type="positional",
        down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
        up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        use_timestep_embedding=True,
        act_fn="mish",
        freq_shift=1,
        flip_sin_to_cos=False,
        norm_num_groups=4,
        layers_per_block=1,
    )


def _smp() -> Iterator[Network]:
    resnet = "encoder.conv1 encoder.layer{1..4}.{0..1} "
    heads = {
        "Unet": (
            resnet + "decoder.blocks.{0..4} segmentation_head",
            "encoder.conv1 encoder.layer{1..4} decoder.blocks.{0..4} segmentation_head",
        ),
        "UnetPlusPlus": ("", ""),
        "Linknet": ("", ""),
        "FPN": ("", ""),
        "PSPNet": ("", ""),
        "MAnet": ("", ""),
        "DeepLabV3": ("", ""),
        "DeepLabV3Plus": ("", ""),
        "UPerNet": ("", ""),
        "Segformer": ("", ""),
    }
    for name, (blocks, stages) in heads.items():
        options = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 2}
        yield Network(
            name,
            "segmentation_models_pytorch",
            _use("segmentation_models_pytorch", name, **options),
            images(64),
            blocks,
            stages,
        )
    yield Network(
        "Unet mobilenet_v2",
        "segmentation_models_pytorch",
        _use("segmentation_models_pytorch", "Unet", encoder_name="mobilenet_v2", encoder_weights=None),
        images(32),
    )


def _monai() -> Iterator[Network]:
    def net(name: str, size: int, blocks: str = "", stages: str = "", channels: int = 1, **options: Any) -> Network:
        return Network(
            name, "monai", _use("monai.networks.nets", name, **options), images(size, channels), blocks, stages
        )

    flat = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    yield Network(
        "UNet",
        "monai",
        _use("monai.networks.nets", "UNet", **flat, channels=(4, 8, 8), strides=(2, 2), num_res_units=2),
        images(32, 1),
    )
    yield net("BasicUNet", 32, **flat, features=(4, 4, 8, 8, 8, 4))
    yield Network(
        "AttentionUnet",
        "monai",
        _use("monai.networks.nets", "AttentionUnet", **flat, channels=(4, 8, 8), strides=(2, 2)),
        images(32, 1),
    )
    yield net("SegResNet", 32, **flat, init_filters=8)
    yield net(
        "DynUNet", 32, **flat, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[4, 8, 8]
    )
    yield net("VNet", 32, **flat)
    yield net("UNETR", 32, **flat, img_size=32, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2)
    yield net("SwinUNETR", 64, **flat, feature_size=12)
    yield net("DenseNet121", 32, **flat)
    yield net("SEResNet50", 32, spatial_dims=2, in_channels=1, num_classes=2)
    yield net(
        "ViT",
        32,
        in_channels=1,
        img_size=32,
        patch_size=8,
        hidden_size=24,
        mlp_dim=32,
        num_layers=3,
        num_heads=2,
        classification=True,
        num_classes=3,
        spatial_dims=2,
    )
    yield Network(
        "AutoEncoder",
        "monai",
        _use("monai.networks.nets", "AutoEncoder", **flat, channels=(4, 8), strides=(2, 2)),
        images(32, 1),
    )
    yield Network(
        "VarAutoEncoder",
        "monai",
        _use(
            "monai.networks.nets",
            "VarAutoEncoder",
            spatial_dims=2,
            in_shape=(1, 32, 32),
            out_channels=1,
            latent_size=4,
            channels=(4, 8),
            strides=(2, 2),
        ),
        images(32, 1),
    )


def _torchaudio() -> Iterator[Network]:
    def net(name: str, inputs: Callable[[], Any], forward: Any = None, **options: Any) -> Network:
        return Network(name, "torchaudio", _use("torchaudio.models", name, **options), inputs, "", "", forward)

    def with_lengths(model: nn.Module, x: Tensor) -> Any:
        return model(x, torch.full((len(x),), x.shape[1]))

    yield net("Wav2Letter", rows(1, 2000), num_classes=5)
    yield net(
        "ConvTasNet",
        rows(1, 800),
        num_sources=2,
        enc_num_feats=16,
        msk_num_feats=8,
        msk_num_hidden_feats=8,
        msk_num_layers=2,
        msk_num_stacks=2,
    )
    yield net("DeepSpeech", rows(1, 14, 8), n_feature=8, n_hidden=16, n_class=5)
    yield net(
        "Conformer",
        rows(14, 8),
        with_lengths,
        input_dim=8,
        num_heads=2,
        ffn_dim=16,
        num_layers=3,
        depthwise_conv_kernel_size=3,
    )
    yield net("HDemucs", rows(2, 8192), sources=["a", "b"], channels=8, nfft=1024, depth=4)


def _graphs() -> Iterator[Network]:
    def ring(count: int) -> Tensor:
        nodes = torch.arange(count)
        return torch.stack([torch.cat([nodes, nodes]), torch.cat([(nodes + 1) % count, (nodes - 1) % count])])

    def run(model: nn.Module, x: Tensor) -> Any:
        return model(x, ring(len(x)))

    for name in ("GCN", "GraphSAGE", "GAT", "GIN", "EdgeCNN"):
        options = {"in_channels": 6, "hidden_channels": 8, "num_layers": 3, "out_channels": 3}
        yield Network(
            name, "torch_geometric", _use("torch_geometric.nn", name, **options), rows(6), "convs.{0..2}", "", run
        )


def _vit_pytorch() -> Iterator[Network]:
    def net(module: str, name: str, size: int = 32, blocks: str = "", **options: Any) -> Network:
        return Network(name, "vit_pytorch", _use(f"vit_pytorch.{module}", name, **options), images(size), blocks)

    plain = {"image_size": 32, "patch_size": 8, "num_classes": 3, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
    yield net(
        "vit",
        "ViT",
        blocks="to_patch_embedding.2 transformer.layers.0.{0,1} transformer.layers.1.{0,1} "
        "transformer.layers.2.{0,1} mlp_head",
        **plain,
    )
    yield net("simple_vit", "SimpleViT", **plain)
    yield net("deepvit", "DeepViT", **plain)
    yield net("cait", "CaiT", **plain, cls_depth=1)
    yield net(
        "cvt", "CvT", 64, num_classes=3, s1_emb_dim=8, s2_emb_dim=8, s3_emb_dim=8, s1_depth=1, s2_depth=1, s3_depth=2
    )
    yield net(
        "mobile_vit",
        "MobileViT",
        64,
        image_size=(64, 64),
        dims=[16, 20, 24],
        channels=[4, 8, 8, 8, 8, 8, 8, 8, 8, 8, 16],
        num_classes=3,
    )
    yield net("cct", "CCT", img_size=32, embedding_dim=16, num_layers=3, num_heads=2, mlp_ratio=2, num_classes=3)
    yield net("rvt", "RvT", **plain)
    yield net(
        "nest",
        "NesT",
        32,
        image_size=32,
        patch_size=4,
        dim=8,
        heads=2,
        num_hierarchies=2,
        block_repeats=(1, 2),
        num_classes=3,
    )
    yield net(
        "levit", "LeViT", 64, image_size=64, num_classes=3, stages=2, dim=(16, 24), depth=2, heads=(2, 2), mlp_mult=2
    )
    yield net("max_vit", "MaxViT", 64, num_classes=3, dim=8, depth=(1, 2), dim_head=4, window_size=2)


def _x_transformers() -> Iterator[Network]:
    def make(kind: str, **options: Any) -> Callable[[], nn.Module]:
        def made() -> nn.Module:
            library = importlib.import_module("x_transformers")
            layers = getattr(library, kind)(dim=16, depth=3, heads=2, **options)
            net: nn.Module = library.TransformerWrapper(num_tokens=40, max_seq_len=32, attn_layers=layers)
            return net

        return made

    yield Network("Encoder", "x_transformers", make("Encoder"), tokens())
    yield Network("Decoder", "x_transformers", make("Decoder", rotary_pos_emb=True), tokens())
    yield Network("Decoder with SwiGLU", "x_transformers", make("Decoder", ff_glu=True, use_rmsnorm=True), tokens())


def _others() -> Iterator[Network]:
    def open_clip() -> nn.Module:
        library = importlib.import_module("open_clip")
        vision = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}
        words = {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2}
        made: nn.Module = library.CLIP(16, vision, words)
        return made

    yield Network(
        "CLIP",
        "open_clip",
        open_clip,
        named(image=images(32), text=tokens(8)),
        "visual.conv1 visual.transformer.resblocks.{0..2} token_embedding transformer.resblocks.{0..1}",
    )
    yield Network("HardNet", "kornia", _use("kornia.feature", "HardNet", pretrained=False), images(32, 1))
    yield Network("TFeat", "kornia", _use("kornia.feature", "TFeat", pretrained=False), images(32, 1))
    yield Network("HyNet", "kornia", _use("kornia.feature", "HyNet", pretrained=False), images(32, 1))
    yield Network("SOSNet", "kornia", _use("kornia.feature", "SOSNet", pretrained=False), images(32, 1))
    table = {"n_cont_features": 6, "cat_cardinalities": []}
    yield Network(
        "FTTransformer",
        "rtdl_revisiting_models",
        lambda: importlib.import_module("rtdl_revisiting_models").FTTransformer(
            **table,
            d_out=3,
            n_blocks=3,
            d_block=16,
            attention_n_heads=2,
            attention_dropout=0.1,
            ffn_d_hidden_multiplier=2,
            ffn_dropout=0.1,
            residual_dropout=0.0,
        ),
        rows(6),
        "",
        "",
        lambda net, x: net(x, None),
    )
    yield Network(
        "ResNet",
        "rtdl_revisiting_models",
        _use(
            "rtdl_revisiting_models",
            "ResNet",
            d_in=6,
            d_out=3,
            n_blocks=3,
            d_block=8,
            d_hidden=None,
            d_hidden_multiplier=2.0,
            dropout1=0.1,
            dropout2=0.0,
        ),
        rows(6),
    )
    yield Network(
        "MLP",
        "rtdl_revisiting_models",
        _use("rtdl_revisiting_models", "MLP", d_in=6, d_out=3, n_blocks=3, d_block=8, dropout=0.1),
        rows(6),
    )
    yield Network(
        "TabTransformer",
        "tab_transformer_pytorch",
        _use(
            "tab_transformer_pytorch",
            "TabTransformer",
            categories=(5, 5, 5),
            num_continuous=4,
            dim=8,
            dim_out=3,
            depth=3,
            heads=2,
            mlp_act=nn.ReLU(),  # without one it does not run
        ),
        several(tokens(3, 5, 0), rows(4)),
    )
    yield Network(
        "FTTransformer",
        "tab_transformer_pytorch",
        _use(
            "tab_transformer_pytorch",
            "FTTransformer",
            categories=(5, 5, 5),
            num_continuous=4,
            dim=8,
            dim_out=3,
            depth=3,
            heads=2,
        ),
        several(tokens(3, 5, 0), rows(4)),
    )


def networks() -> Iterator[Network]:
    """All networks."""
    for library in (
        _torchvision,
        _timm,
        _transformers,
        _peft,
        _diffusers,
        _smp,
        _monai,
        _torchaudio,
        _graphs,
        _vit_pytorch,
        _x_transformers,
        _others,
    ):
        yield from library()
