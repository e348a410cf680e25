"""Wrong arguments, refused in one voice: what was got, what was expected, what to do."""

from collections.abc import Collection, Sequence

__all__ = ["require_choice", "require_image", "require_outputs", "require_positive"]


def require_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Refuse a name that is not in a table.

    Args:
        field: What the name selects, for the message.
        value: The name got.
        choices: The names known.

    Raises:
        ValueError: If the name is unknown.
    """
    if value not in choices:
        raise ValueError(f"unknown {field} {value!r}; choose one of {', '.join(choices)}")


def require_positive(field: str, *values: int | float) -> None:
    """Refuse sizes that are zero or negative.

    Args:
        field: What the sizes are, for the message.
        *values: The sizes.

    Raises:
        ValueError: If one of them is not positive.
    """
    for value in values:
        if not value > 0:
            shown = values[0] if len(values) == 1 else tuple(values)
            raise ValueError(f"{field} must be positive, got {shown}; use 1 or more")


def require_outputs(input_shape: Sequence[int], num_outputs: int) -> None:
    """Refuse an input shape or a number of outputs no model can have.

    Args:
        input_shape: Shape of one input, without the batch axis.
        num_outputs: C, the width of the output.

    Raises:
        ValueError: If the shape is empty or a size is not positive.
    """
    if len(input_shape) == 0:
        raise ValueError(
            "input_shape is the shape of one input without the batch axis, such as (64,) or "
            "(1, 28, 28); got ()"
        )
    require_positive("input_shape", *input_shape)
    require_positive("num_outputs", num_outputs)


def require_image(
    family: str, input_shape: Sequence[int], smallest: int, advice: str
) -> tuple[int, int, int]:
    """Read an input shape as an image that is large enough.

    Args:
        family: Name of the model, for the message.
        input_shape: Shape of one input; an image is (channels, height, width).
        smallest: Least height and width, in pixels.
        advice: What to do with a smaller image.

    Returns:
        Channels, height and width.

    Raises:
        ValueError: If the shape is not that of an image, or the image is too small.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"{family} reads images: input_shape must be (channels, height, width), got "
            f"{tuple(input_shape)}; reshape the inputs or use the mlp family"
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"{family} needs images of at least {smallest} x {smallest} pixels, got "
            f"{height} x {width}; {advice}"
        )
    return channels, height, width
