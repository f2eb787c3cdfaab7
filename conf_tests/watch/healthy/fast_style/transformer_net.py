import torch


class ConvLayer(torch.nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride):
        super().__init__()
        self.reflection_pad = torch.nn.ReflectionPad2d(kernel_size // 2)
        self.conv2d = torch.nn.Conv2d(in_channels, out_channels, kernel_size, stride)

    def forward(self, x):
        return self.conv2d(self.reflection_pad(x))


class TransformerNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = ConvLayer(3, 6, 3, 1)
        self.in1 = torch.nn.InstanceNorm2d(6, affine=True)
        self.conv2 = ConvLayer(6, 6, 3, 2)
        self.deconv1 = torch.nn.ConvTranspose2d(6, 3, 2, 2)

    def forward(self, X):
        y = torch.relu(self.in1(self.conv1(X)))
        return self.deconv1(torch.relu(self.conv2(y)))
