"""The table of networks. A new network is one file with its class and recipe, and one row here."""

from cnn import CNN
from fashion.layers import Network
from fashion.plots import assign_styles
from ffn import FFN

MODELS: dict[str, type[Network]] = {
    "ffn": FFN,
    "cnn": CNN,
}
STYLES = assign_styles(MODELS)  # label, colour and marker of each model in every figure
