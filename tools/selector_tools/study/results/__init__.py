"""The page of results and its plots, made of what `selector bench training --save` wrote."""
