"""Describe a spec in lines of text: spec_lines."""

from centernet_trt.runtime.spec import FixedSize, ModelSpec


def preprocessing_line(spec: ModelSpec) -> str:
    """Describe how an image becomes the network's input: resize policy, size, channel order, normalisation."""
    image, size = spec.input, spec.input.size
    shown = (
        f"fixed size {size.width}x{size.height}"
        if isinstance(size, FixedSize)
        else f"{size.rule} size, multiple {size.multiple}"
    )
    border = f" with border {image.resize.pad_value}" if image.resize.policy == "letterbox" else ""
    normalised = f"(pixel * {image.scale:.6g} - {list(image.mean)}) / {list(image.std)}"
    return f"image: {image.resize.policy}{border}, {shown}, {image.channel_order.upper()}, {normalised}"


def spec_lines(spec: ModelSpec) -> list[str]:
    """Describe the pre-processing, the heads and the decode of a spec."""
    heads = spec.heads
    box = heads.box
    offset = f" + {heads.offset.tensor}" if heads.offset else ""
    peaks = f"top {spec.top_k}, threshold {spec.threshold:g}, plateau {spec.plateau}"
    centre = f"centre = cell + {spec.cell_offset:g}{offset}"
    return [
        preprocessing_line(spec),
        f"heatmap: {heads.heatmap.tensor} ({heads.heatmap.activation}), {peaks}",
        f"box: {box.tensor} ({box.encoding}, {box.units}, {box.order}); {centre}; stride {spec.stride}",
        *(
            f"extra: {extra.name} ({extra.kind}, {extra.channels} channels of {extra.tensor})"
            for extra in heads.extra
        ),
    ]
