"""Training on other machines, through the clients of the engines that own them."""
