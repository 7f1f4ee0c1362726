"""A class that makes subclasses of tensors see every function, so that torch's own step is all they can be given."""


class Seeing:
    """To be named before torch's class. What adds nothing to torch's class is native."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})
