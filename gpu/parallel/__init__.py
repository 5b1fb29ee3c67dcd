"""One model on many ranks: who they are, what each has of the model, and how they add up what they compute."""
