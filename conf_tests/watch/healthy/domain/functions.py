from torch.autograd import Function


class ReverseLayerF(Function):
    """The identity whose gradient is turned round and scaled."""

    @staticmethod
    def forward(ctx, x, alpha):
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.neg() * ctx.alpha, None
