"""What the source says, claim by claim."""

from kobai.results import Claim

TITLE = "Loss landscapes from a true minimum"

EXPECTED = (
    Claim(
        key="optimal",
        text="relabelled with its own outputs a network is exactly optimal: training and "
        "validation loss are zero at θ*",
        where="section 2, Algorithm 1, Table 1",
        figure="landscape",
    ),
    Claim(
        key="lm-resnet",
        text="the dense network takes twice as many epochs to a local minimum as ResNet-50",
        where="section 3.3",
        figure="solutions",
    ),
    Claim(
        key="lm-cnn",
        text="the dense network takes longer to a local minimum than the CNN",
        where="section 3.3",
        figure="solutions",
    ),
    Claim(
        key="gm",
        text="the dense network takes twice as many epochs to a global minimum as the CNN and "
        "ResNet-50",
        where="section 3.3",
        figure="solutions",
    ),
    Claim(
        key="resnet-cnn",
        text="ResNet-50 takes fewer epochs than the CNN",
        where="section 3.3",
        figure="solutions",
    ),
    Claim(
        key="performance",
        text="ResNet-50 performs better than the CNN, and the CNN better than the dense network",
        where="section 4.1",
        figure="solutions",
    ),
    Claim(
        key="smooth",
        text="the landscape of ResNet-50 is the smoothest, with small slopes around the minimum",
        where="section 3.2, Figure 1",
        figure="landscape",
    ),
    Claim(
        key="sharp",
        text="the landscape of the dense network is very sharp and asymmetric",
        where="section 3.2, Figure 1",
        figure="landscape",
    ),
    Claim(
        key="wide",
        text="the range of low loss is wide for ResNet-50 and narrow for the dense network",
        where="section 3.3, Figure 1",
        figure="landscape",
    ),
    Claim(
        key="unreachable",
        text="descent cannot reach a true minimum, because it lies where the loss falls steeply "
        "(a conjecture of the source, and its open question)",
        where="section 4.2",
        figure="descent",
    ),
)
