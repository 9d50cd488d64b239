"""What is learned: flow matching, epsilon, v-prediction."""
