"""The backward pass: learning signals come in through anchors, and pass through the local graphs layer by layer."""
