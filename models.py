"""The networks that are trained and compared. A new one is a file like cnn.py and a row here.

Its output layer must be the one that it creates last: Muon trains the weights of all others.
"""

from fashion.recipe import Model

import cnn
import ffn

MODELS = {
    "ffn": Model(ffn.FFN, ffn.RECIPE, ffn.QUICK),
    "cnn": Model(cnn.CNN, cnn.RECIPE, cnn.QUICK),
}
