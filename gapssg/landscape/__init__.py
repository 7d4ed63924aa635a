"""Loss landscapes: directions, surfaces, the numbers behind them, and figures from a saved surface."""
