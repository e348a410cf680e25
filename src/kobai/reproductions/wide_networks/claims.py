"""What the source says, claim by claim; sections and figures are the report's own numbers."""

from kobai.results import Claim

TITLE = "Geometry of wide neural networks"

EXPECTED = (
    Claim(
        key="rate-line",
        text="without normalisation gradient descent trains only below η_c = 2/λ_max, which falls "
        "as the network gets wider",
        where="Figure 1, left, red line",
        figure="1",
    ),
    Claim(
        key="rate-normalized",
        text="with normalisation over the batch in the last layer one large learning rate serves "
        "every width",
        where="Figure 1, right",
        figure="1",
    ),
    Claim(
        key="last-layer-enough",
        text="to take the width out of λ_max, normalising the last layer is enough",
        where="task 1",
        figure="1",
    ),
    Claim(
        key="layer-norm",
        text="layer normalisation does not have this effect",
        where="task 1",
        figure="1",
    ),
    Claim(
        key="online-rate",
        text="in very deep networks under dynamical isometry the largest learning rate of online "
        "learning follows from λ_max of the one-example Fisher matrix",
        where="Figure 2, red line",
        figure="2",
    ),
    Claim(
        key="isometry-concentration",
        text="under dynamical isometry the eigenvalues of the one-example Fisher matrix "
        "concentrate",
        where="task 2-1",
        figure="2",
    ),
    Claim(
        key="same-speed",
        text="with η scaled by α, layer-wise, tri-diagonal, unit-wise and K-FAC natural gradients "
        "converge as fast as the exact one",
        where="Figure 3; task 2-2",
        figure="3",
    ),
    Claim(
        key="isotropy",
        text="these approximations satisfy the isotropy condition J G⁻¹ Jᵀ/N = α I",
        where="Figure 3, equation above the plot",
        figure="3",
    ),
    Claim(
        key="function-space",
        text="outputs follow f_t = y + (I − η Θ)ᵗ (f_0 − y)",
        where="Figure 3, equation above the plot",
        figure="3",
    ),
    Claim(
        key="descent-slow",
        text="plain gradient descent is slowed by the condition number of the kernel",
        where="task 2-2",
        figure="3",
    ),
    Claim(
        key="diagonal",
        text="approximations coarser than unit-wise need not be isotropic",
        where="task 2-2",
        figure="3",
    ),
    Claim(
        key="regression",
        text="each trained network is a kernel ridge-less regression with a kernel of its own",
        where="task 2-2",
        figure="3",
    ),
    Claim(
        key="generalization",
        text="all the gradients reach about the same generalisation",
        where="task 2-2",
        figure="3",
    ),
    Claim(
        key="invariance",
        text="the approximations lose the natural gradient's invariance under changes of "
        "coordinates",
        where="task 2-2",
        figure="3",
    ),
    Claim(
        key="outliers",
        text="as the width grows, as many eigenvalues as there are classes stand out, in "
        "regression and in classification alike",
        where="list of papers, number 3",
        figure="4",
    ),
    Claim(
        key="softmax-spread",
        text="softmax increases the spread of the eigenvalues",
        where="task 1",
        figure="4",
    ),
    Claim(
        key="normalization-scale",
        text="normalisation brings the eigenvalues to one scale, in classification as in "
        "regression, and so it does for the tangent kernel",
        where="task 1; list of papers, number 3",
        figure="4",
    ),
    Claim(
        key="input-outliers",
        text="the metric on the inputs has as many outliers as there are classes",
        where="task 3-2",
        figure="4",
    ),
    Claim(
        key="input-directions",
        text="along these few input directions the outputs are least robust, already at random "
        "initialisation",
        where="task 3-2",
        figure="4",
    ),
    Claim(
        key="small-data",
        text="accuracy falls with the number of training examples whatever the method",
        where="task 3-1",
        figure="5",
    ),
    Claim(
        key="augmentation",
        text="data augmentation helps much where data are few",
        where="task 3-1",
        figure="5",
    ),
    Claim(
        key="self-paced",
        text="augmenting the examples that are still hard does better than augmenting all",
        where="task 3-1, the paper it cites",
        figure="5",
    ),
    Claim(
        key="convolutional-kernels",
        text="tangent kernels of convolutional and recurrent networks",
        where="task 1",
        out_of_scope="the source left them to others",
    ),
    Claim(
        key="weight-normalization",
        text="coordinates such as weight normalisation for the natural gradient",
        where="task 2-2",
        out_of_scope="planned by the source and not carried out there",
    ),
    Claim(
        key="cheapest",
        text="the cheapest approximation that is still isotropic",
        where="outlook",
        out_of_scope="an open question of the source",
    ),
)
