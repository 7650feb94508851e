"""Parts of models: fetching them from holders, and serving them."""
