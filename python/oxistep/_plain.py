"""``oxistep.plain_state_dict``: checkpoints as torch's classes write them."""

from typing import Any

__all__ = ["plain_state_dict"]


def plain_state_dict(optimizer: Any) -> dict[str, Any]:
    """The state dict of an optimizer as the class of torch, or of the package that it is from, would have written it.

    States in 8 bits or bfloat16 become numbers of the parameter's dtype, and what is kept beside the weights is left
    out, averages too: parameters are saved with the model, and ``ema_state_dict`` has the averages. It loads into
    ``torch.optim``, and into an optimizer with any setting of ``state_dtype=`` and ``weights=``.

    Args:
        optimizer: an optimizer of ``oxistep.optim``, ``oxistep.zoo`` or a rule.

    Returns:
        dict: ``{"state": ..., "param_groups": ...}``, with tensors of their own where they were converted.

    Raises:
        TypeError: if ``optimizer`` is none of oxistep's.

    Example:
        >>> import torch, oxistep
        >>> w = torch.zeros(64, 64, requires_grad=True)
        >>> optimizer = oxistep.optim.AdamW([w], state_dtype="8bit")
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[w])
        ['exp_avg_codes', 'exp_avg_headers', 'exp_avg_sq_codes', 'exp_avg_sq_headers', 'step']
        >>> sorted(oxistep.plain_state_dict(optimizer)["state"][0])
        ['exp_avg', 'exp_avg_sq', 'step']
    """
    from oxistep.optim._averages import AVERAGE, COUNT
    from oxistep.optim._compact import plain_entry
    from oxistep.optim._definition import definition_of
    from oxistep.optim._kept import kept_of
    from oxistep.optim._native import DropIn

    if not isinstance(optimizer, DropIn):
        raise TypeError(f"plain_state_dict: expected an optimizer of oxistep, got {type(optimizer).__name__}")
    definition = definition_of(type(optimizer))
    kept = kept_of(optimizer)
    saved: dict[str, Any] = optimizer.state_dict()
    groups = zip(optimizer.param_groups, saved["param_groups"], strict=True)
    for group, saved_group in groups:
        kinds = definition.kinds(optimizer, group) if kept.state_dtype or kept.weights else {}
        if kept.ema is not None:
            saved_group.pop(COUNT, None)
        for p, number in zip(group["params"], saved_group["params"], strict=True):
            entry = saved["state"].get(number)
            if entry is not None and kept.ema is not None:
                entry = {name: value for name, value in entry.items() if name != AVERAGE}
                saved["state"][number] = entry
            if entry is None or (not kinds and not kept.weights):
                continue
            plain = plain_entry(entry, kinds, p, p.dtype, kept.weights)
            if definition.counts_for_noise:
                plain.pop("step", None)
            saved["state"][number] = plain
    return saved
