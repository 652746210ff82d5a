"""Methods of unlearning: rules (closed forms), the objective of gradient descent, and the road without Lightning."""
