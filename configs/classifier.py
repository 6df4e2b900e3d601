"""Image classifiers on Fashion-MNIST.

aigc train --config=configs/classifier.py               a convolutional network on 5,000 images, a minute on a laptop
aigc train --config=configs/classifier.py:mlp           a multilayer perceptron
aigc train --config=configs/classifier.py:resnet        a residual network with batch normalization
"""
